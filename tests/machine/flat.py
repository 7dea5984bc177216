"""Flat guests for tests: assembly at fixed addresses in, a VM that runs it.

Knows how page tables, descriptors and gates look in a guest's memory. Knows nothing of how a guest is run.
"""

import struct
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import zip_longest

from tests.assembly import ENTRY, assemble
from vmm import vm as whole
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.console import Console
from vmm.exits import End, Stop
from vmm.host import Host
from vmm.machine import Machine

MEMORY_MIB = 4
FLAT_CODE, FLAT_DATA = 0x00CF9B00_0000FFFF, 0x00CF9300_0000FFFF
USER_CODE, USER_DATA = 0x00CFFB00_0000FFFF, 0x00CFF300_0000FFFF

LGDT, LIDT = ".byte 0x0f,0x01,0x15; .long {}", ".byte 0x0f,0x01,0x1d; .long {}"  # Keystone would put an operand-size prefix in front
FINISH = "mov al,0; out 0xf4,al"


def image(parts: Mapping[int, str | bytes]) -> dict[int, bytes]:
    """Parts of a guest, each at its address: text is assembled."""
    return {at: part if isinstance(part, bytes) else assemble(part, at) for at, part in parts.items()}


def flat_vm(
    parts: Mapping[int, str | bytes],
    *,
    ring: int = 1,
    stubs_in_cache: bool = True,
    translate_user: bool = False,
    memory_mib: int = MEMORY_MIB,
    options: Options | None = None,
    timeless: bool = False,
    icount: bool = False,
) -> whole.Vm:
    """A VM about to run the part at ENTRY, the others in its memory: paging off, flat segments, IF=0, no IDT.

    options: the back-end, where it is not bt with `ring`, `stubs_in_cache` and `translate_user`. timeless: virtual time stands still,
    so that no device interrupts.
    """
    how = options or BtOptions(ring=ring, stubs_in_cache=stubs_in_cache, translate_user=translate_user)
    source = (lambda: 0) if timeless else None
    vm = whole.Vm(whole.machine_for(memory_mib, how), memory_mib=memory_mib, options=how, time_source=source, icount=icount)
    load_flat(vm, parts)
    return vm


def load_flat(vm: whole.Vm, parts: Mapping[int, str | bytes]) -> None:
    """Puts the parts of a guest into a VM."""
    made = image(parts)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(made[ENTRY])
        file.flush()
        vm.load(file.name, address=ENTRY)
    for at, part in made.items():
        if at != ENTRY:
            vm.memory.write(at, part)


def flat_host(
    *guests: tuple[Mapping[int, str | bytes], Options], consoles: Sequence[Console] = (), reboots: bool = False, icount: bool = False
) -> Host:
    """A host of such VMs side by side, on one machine. consoles: of the first of them."""

    def boot(parts: Mapping[int, str | bytes], how: Options, console: Console | None, machine: Machine) -> whole.Vm:
        vm = whole.Vm(machine, memory_mib=MEMORY_MIB, options=how, console=console, icount=icount)
        load_flat(vm, parts)
        return vm

    host = Host.for_sizes((how, MEMORY_MIB) for _, how in guests)
    for number, ((parts, how), console) in enumerate(zip_longest(guests, consoles)):
        host.add(f"vm{number}", how, MEMORY_MIB, partial(boot, parts, how, console), reboots=reboots)
    return host


def finish(vm: whole.Vm, timeout: float = 20) -> int:
    """Runs the guest to its debug exit; returns the value that it reported. Fails with the reason for any other end."""
    stop = vm.run(timeout)
    assert stop.why is End.REPORTED, describe(vm, stop)
    assert vm.stats.outside == 0, "guest kernel code ran outside the cache"
    return stop.value


def describe(vm: whole.Vm, stop: Stop) -> str:
    """Where and why a run ended, for a failed assertion."""
    return f"{stop.reason} at {vm.vcpu.eip:#x}, CPL {vm.vcpu.cpl}, CR2 {vm.vcpu.cr2:#x}, ESP {vm.vcpu.esp:#x}, last exits {list(vm.stats.last)}"


def words(vm: whole.Vm, gpa: int, count: int) -> list[int]:
    """`count` 32-bit words of guest memory from `gpa`."""
    return list(struct.unpack(f"<{count}I", vm.memory.read(gpa, 4 * count)))


def pack(values: Iterable[int]) -> bytes:
    """32-bit words as bytes."""
    return b"".join(value.to_bytes(4, "little") for value in values)


def quads(values: Iterable[int]) -> bytes:
    """64-bit words as bytes: descriptor tables and PAE tables."""
    return b"".join(value.to_bytes(8, "little") for value in values)


def gate(offset: int, *, dpl: int = 0, selector: int = 8) -> int:
    """A 32-bit interrupt gate."""
    return offset & 0xFFFF | selector << 16 | (0x8E00 | dpl << 13) << 32 | (offset >> 16) << 48


def system_segment(base: int, limit: int, kind: int) -> int:
    """A present system descriptor: an LDT (2) or an available TSS (9)."""
    return limit & 0xFFFF | (base & 0xFFFFFF) << 16 | (0x80 | kind) << 40 | (limit >> 16) << 48 | (base >> 24) << 56


def code_with_base(base: int) -> int:
    """A 32-bit ring 0 code segment of 4 GiB from `base`."""
    return FLAT_CODE | (base & 0xFFFFFF) << 16 | (base >> 24) << 56


def data_with_base(base: int) -> int:
    """A 32-bit ring 0 data segment of 4 GiB from `base`."""
    return FLAT_DATA | (base & 0xFFFFFF) << 16 | (base >> 24) << 56
