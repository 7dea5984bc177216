"""VMs that are processes: each runs in one of its own, and answers those who ask by a socket in its directory."""
