"""What the manual says: bits, vectors, descriptors and flags of the x86, as named numbers and small pure functions."""
