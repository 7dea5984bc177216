"""The Xen PV ABI for 32-bit PAE guests: what a paravirtual guest may ask for, and what becomes of it.

The interface of the field, by Xen's public headers; numbers and layouts are theirs. A `Domain` is what a guest has in place of a PC.
"""
