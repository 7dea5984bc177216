"""A VM as files: its directory with a configuration, disks, snapshots and a log."""
