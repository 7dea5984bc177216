"""The bt back-end: guest kernel code runs only from the translation cache, guest user code directly."""

from vmm.backends.bt.engine import BinaryTranslation
from vmm.backends.bt.options import BtOptions

__all__ = ["BinaryTranslation", "BtOptions"]
