"""Back-ends: what runs guest code until it exits. One file or folder each, found by name."""
