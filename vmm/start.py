"""What a loader leaves behind: the state in which a guest's virtual CPU starts.

Knows the machine state that multiboot promises. Knows no virtual CPU: whoever builds one copies these values into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vmm.boot.symbols import Symbols

# The descriptors that a kernel finds loaded, in the layout that QEMU's `-kernel` leaves: kernels that reload a segment register before
# they load a GDT of their own are common among first attempts, and they work there.
CODE_SELECTOR: Final = 0x08
DATA_SELECTOR: Final = 0x10
GDT: Final = b"".join(
    descriptor.to_bytes(8, "little")
    for descriptor in (
        0,
        0x00CF_9B00_0000_FFFF,  # flat 32-bit code, accessed
        0x00CF_9300_0000_FFFF,  # flat 32-bit data, accessed
        0x0000_9E00_0000_FFFF,  # 16-bit code, for kernels that go back to real mode
        0x0000_9200_0000_FFFF,  # 16-bit data
    )
)
# A little below where QEMU's loader leaves ESP. Multiboot promises no stack; kernels that forget to set one up work there all the same.
STACK: Final = 0x6F00


STORE_PORT: Final = 1
CONSOLE_PORT: Final = 2
"""Event channels of a Xen domain that are open before it starts."""


@dataclass(frozen=True, slots=True)
class Domain:
    """What a domain builder leaves for a Xen guest, in pages of the guest's memory, page 0 of which is mapped at `virt_base`.

    top: the top-level page table. tables: all page tables, which are mapped read-only. directories: by top-level entry. hypercall_page:
    None when the guest wants none. store, console: the rings of the store and of the console.
    """

    virt_base: int
    top: int
    tables: range
    directories: Mapping[int, int]
    hypercall_page: int | None
    store: int
    console: int


@dataclass(frozen=True, slots=True)
class Start:
    """The first state of a guest: protected mode, flat 32-bit segments, paging off, A20 open, IF=0 (Multiboot 0.6.96, 3.2 "Machine state").

    With `long_tables`, the guest-physical address of four-level page tables: in long mode under those, CS being a segment of 64-bit code.

    `entry` is the first EIP: with paging off and flat segments, a guest-physical address. `kind` is "multiboot", "elf", "flat" or "xen": the
    last starts with paging on, as its `domain` says, and has no GDT of its own.
    The GDT of `gdt_limit + 1` bytes lies in guest memory at `gdt_base`; CS is `cs`, every data segment and SS is `ds`, and a limit of
    4 GiB is loaded in each. No IDT is set up: an exception before the guest loads one is its triple fault.
    """

    entry: int
    kind: str
    symbols: Symbols
    gdt_base: int
    gdt_limit: int = len(GDT) - 1
    cs: int = CODE_SELECTOR
    ds: int = DATA_SELECTOR
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0
    esi: int = 0
    edi: int = 0
    ebp: int = 0
    esp: int = STACK
    eflags: int = 2
    domain: Domain | None = None
    long_tables: int = 0
