"""`vmm compare`: the same guest under every approach, side by side."""
