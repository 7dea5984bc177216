"""`vmm dump`: guest code beside its translation, as text, JSON or a page."""
