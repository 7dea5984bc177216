"""Small Xen guests for tests: assembly text in, a domain that runs it. `tests/xen_kernel.py` has its memory's layout.

Knows the ABI's registers and layouts as a guest must know them. Knows nothing of how hypercalls are done.
"""

import struct
import tempfile
from collections.abc import Mapping

from tests.assembly import assemble
from tests.xen_kernel import BASE, CODE, DATA, HANDLERS, HYPERCALLS, LOG, STACK, TABLE, USER, kernel
from vmm import vm as whole
from vmm.backends.pv import PvOptions
from vmm.exits import Stop
from vmm.machine import Machine
from vmm.xen.domain import XenDomain

__all__ = ["BASE", "CODE", "DATA", "HANDLERS", "HYPERCALLS", "LOG", "STACK", "TABLE", "USER", "assemble"]

MEMORY_MIB = 8
INFO = LOG + 0xFF0  # where the address of the start info page is kept
FINISH = "mov ebx,2; mov ecx,0; mov eax,6; int 0x82"  # sched_op_compat: shutdown, power off
IRET = ".byte 0xcf"  # Keystone would give it an operand size
_START = assemble(f"mov esp,{STACK}; mov [{INFO}],esi", CODE)


def pv_vm(parts: Mapping[int, str | bytes], *, strict: bool = False, machine: Machine | None = None, icount: bool = False) -> whole.Vm:
    """A domain about to run the part at CODE, with ESP at STACK and the start info page's address at INFO."""
    made = dict(parts)
    made[CODE] = _START + (part if isinstance(part := parts[CODE], bytes) else assemble(part, CODE + len(_START)))
    options = PvOptions(strict=strict)
    vm = whole.Vm(machine or whole.machine_for(MEMORY_MIB, options), memory_mib=MEMORY_MIB, options=options, icount=icount)
    with tempfile.NamedTemporaryFile(suffix=".elf") as file:
        file.write(kernel(made))
        file.flush()
        vm.load(file.name)
    return vm


def domain_of(vm: whole.Vm) -> XenDomain:
    """The VM's domain."""
    assert vm.domain is not None
    return vm.domain


def run(parts: Mapping[int, str | bytes], *, strict: bool = False, icount: bool = False) -> whole.Vm:
    """Runs a guest to its power off. Fails with the reason for any other end."""
    vm = pv_vm(parts, strict=strict, icount=icount)
    stop = vm.run(20)
    assert stop.reason == "power off by the guest (sched_op)", describe(vm, stop)
    return vm


def describe(vm: whole.Vm, stop: Stop) -> str:
    """Where and why a run ended, for a failed assertion."""
    return f"{stop.reason} at {vm.vcpu.eip:#x}, CPL {vm.vcpu.cpl}, refused {dict(vm.stats.refused)}, last exits {list(vm.stats.last)}"


def log(vm: whole.Vm, count: int) -> list[int]:
    """Words of the guest's LOG."""
    return list(struct.unpack(f"<{count}I", domain_of(vm).mmu.read(LOG, 4 * count)))


def call(number: int, *arguments: int | str, log_at: int | None = None) -> str:
    """Assembly of one hypercall; its result goes to LOG's word `log_at`."""
    loads = "; ".join(f"mov {register},{argument}" for register, argument in zip(("ebx", "ecx", "edx", "esi", "edi"), arguments, strict=False))
    keep = f"; mov [{LOG + 4 * log_at}],eax" if log_at is not None else ""
    return f"{loads}; mov eax,{number}; int 0x82{keep}"


def map_page(gva: int, page: int, flags: int, log_at: int | None = None) -> str:
    """Assembly that maps one of the guest's pages at `gva` by update_va_mapping; ESI is lost, INFO must hold the start info page's address."""
    entry = f"mov ecx,[{INFO}]; mov ecx,[ecx+68]; mov ecx,[ecx+{4 * page}]; shl ecx,12; or ecx,{flags}"
    keep = f"; mov [{LOG + 4 * log_at}],eax" if log_at is not None else ""
    return f"{entry}; mov ebx,{gva}; mov edx,0; mov esi,2; mov eax,14; int 0x82{keep}"


def page_of(gva: int) -> int:
    """The number of the page that the domain builder maps at `gva`."""
    return gva - BASE >> 12


def traps(*vectors: int, level: int = 3) -> bytes:
    """A trap table for these vectors, whose handlers lie at HANDLERS, and its end."""
    rows = [struct.pack("<BBHI", vector, level, 0xE019, HANDLERS + 0x100 * vector) for vector in vectors]
    return b"".join(rows) + bytes(8)
