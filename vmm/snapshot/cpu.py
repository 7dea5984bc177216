"""The state of a virtual CPU that stands between two instructions, in no back-end's terms, and back into the vCPU of any.

Knows the vCPU's contract, and where general registers and data segments lie in the CPU. Must not know any back-end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from vmm.cpu_state import Cpu
from vmm.cpuid import FS_BASE, GS_BASE
from vmm.errors import InputError
from vmm.vcpu import DeprivilegedVcpu
from vmm.x86.bits import Cr0, Efer
from vmm.x86.descriptors import CODE, CONFORMING, LONG_CODE, PRESENT, SEGMENT, Segment, deprivileged, dpl, own_dpl, with_dpl

if TYPE_CHECKING:
    from vmm.vm import Vm

_DATA = {"es": Cpu.ES, "ds": Cpu.DS, "fs": Cpu.FS, "gs": Cpu.GS}
_HELD = ("cs", "ss", "ldt", "tr")
_NUMBERS = ("eip", "cpl", "cr0", "cr2", "cr3", "cr4", "efer", "gdt_base", "gdt_limit", "idt_base", "idt_limit")
_LOST = 3 << 20  # how much privilege a segment has lost, in the attributes of a deprivileged guest's


@dataclass(frozen=True, slots=True)
class CpuState:
    """One virtual CPU. registers: the sixteen general ones, 64 bits wide. segments: selector, base, limit, attributes by name, attributes with the
    guest's own privilege level. pdptes: PAE's latched pointers. floats: as `Machine.float_state`. delivered: events so far.
    """

    registers: list[int]
    eip: int
    flags: int
    cpl: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    gdt_base: int
    gdt_limit: int
    idt_base: int
    idt_limit: int
    segments: dict[str, list[int]]
    debug: list[int]
    msrs: dict[str, int]
    pdptes: list[int]
    floats: dict[str, int]
    inhibited: bool
    halted: bool
    delivered: int

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: object) -> CpuState:
        """What `plain` gave. Raises InputError for anything else."""
        names = {field.name: field.type for field in fields(cls)}
        if not isinstance(values, dict) or values.keys() != names.keys():
            raise InputError("snapshot: its CPU is not as in this version")
        for name, kind in names.items():
            if not _fits(values[name], str(kind)):
                raise InputError(f"snapshot: CPU: {name} is not what it should be")
        state = cls(**values)
        segments = (*_DATA, *_HELD)
        lengths = (len(state.registers), len(state.debug), len(state.pdptes), len(state.segments), len(state.floats))
        if lengths != (16, 8, 4, len(segments), 33) or any(len(state.segments.get(name, ())) != 4 for name in segments):
            raise InputError("snapshot: CPU: registers are missing")
        return state


def _fits(value: object, kind: str) -> bool:
    match kind:
        case "int" | "bool":
            return type(value).__name__ == kind and (kind == "bool" or isinstance(value, int) and 0 <= value < 1 << 64)
        case "list[int]":
            return isinstance(value, list) and all(_fits(one, "int") for one in value)
        case "dict[str, int]":
            return isinstance(value, dict) and all(isinstance(name, str) and type(one) is int and 0 <= one < 1 << 128 for name, one in value.items())
        case _:
            return isinstance(value, dict) and all(isinstance(name, str) and _fits(one, "list[int]") for name, one in value.items())


def save(vm: Vm) -> CpuState:
    """The vCPU of a VM that has settled."""
    vcpu, state = vm.vcpu, vm.machine.state
    segments = {name: _listed(getattr(vcpu, name)) for name in _HELD}
    for name, at in _DATA.items():
        segments[name] = _listed(Segment(state[at], _wide(state, at + Cpu.BASE), state[at + Cpu.LIMIT], _own(vm, state[at + Cpu.ATTRIBUTES])))
    number = 8 if isinstance(vcpu, DeprivilegedVcpu) else 16
    registers = [state[2 * n] if number == 8 else _wide(state, 2 * n) for n in range(number)] + [0] * (16 - number)
    return CpuState(
        registers=registers,
        flags=vcpu.flags(),
        segments=segments,
        debug=[vcpu.debug[n] for n in range(8)],
        msrs={str(number): value for number, value in vcpu.msrs.items() if number not in (FS_BASE, GS_BASE)},
        pdptes=list(vm.paging.pdptes),
        floats=vm.machine.float_state(),
        inhibited=vcpu.inhibited,
        halted=vcpu.halted,
        delivered=vcpu.delivered,
        **{name: getattr(vcpu, name) for name in _NUMBERS},
    )


def restore(vm: Vm, saved: CpuState) -> None:
    """Puts a state into the vCPU of a VM whose back-end has started and whose memory is the guest's already."""
    vcpu, state = vm.vcpu, vm.machine.state
    _restore_msrs(vm, saved)
    if vm.domain is None:
        _restore_control(vm, saved)
    else:  # what else there is of control registers is the domain's
        _check_levels(saved)
        vm.machine.set_task_switched(bool(saved.cr0 & Cr0.TS))
    for name in _HELD:
        setattr(vcpu, name, Segment(*saved.segments[name]))
    for name, at in _DATA.items():
        selector, base, limit, attributes = saved.segments[name]
        vm.machine.set_segment(at, selector, base, limit, _shown(vm, saved, attributes))
    vcpu.cpl = saved.cpl
    for name in ("cr2", "gdt_base", "gdt_limit", "idt_base", "idt_limit", "eip"):
        setattr(vcpu, name, getattr(saved, name))
    vm.machine.set_float_state(saved.floats)
    for n, value in enumerate(saved.registers if not isinstance(vcpu, DeprivilegedVcpu) else saved.registers[:8]):
        state[2 * n], state[2 * n + 1] = value & 0xFFFFFFFF, value >> 32
    for n, value in enumerate(saved.debug):
        vcpu.debug[n] = value
    vcpu.set_flags(saved.flags)
    vcpu.cpl = saved.cpl  # EFLAGS.VM counts too
    vcpu.inhibited, vcpu.halted, vcpu.delivered = saved.inhibited, saved.halted, saved.delivered


def _check_levels(saved: CpuState) -> None:
    """A guest that runs directly has its kernel at level 1."""
    for name, bits in (("cs", PRESENT | SEGMENT | CODE), ("ss", PRESENT | SEGMENT)):
        attributes = saved.segments[name][3]
        at_level = dpl(attributes) == saved.cpl or attributes & CONFORMING and 0 < dpl(attributes) < saved.cpl
        if saved.cpl not in (1, 3) or attributes & (bits | LONG_CODE) != bits or not at_level:
            raise InputError(f"snapshot: CPU: {name} is not a paravirtual guest's")


def _restore_msrs(vm: Vm, saved: CpuState) -> None:
    """The MSRs that the VM's CPU has. One that it lacks must never have been used."""
    msrs = vm.cpu_model.msrs()
    for name, value in saved.msrs.items():
        number = int(name) if name.isdigit() else -1
        if number in msrs:
            msrs[number] = value
        elif value or number < 0:
            raise InputError(f"snapshot: its CPU has MSR {number:#x}, the one of --backend {vm.options.backend} has not")
    if saved.efer & ~(vm.cpu_model.efer | Efer.LMA):
        raise InputError(f"snapshot: of a 64-bit guest, for which --backend {vm.options.backend} has no CPU: use hw")
    vm.vcpu.msrs = msrs


def _restore_control(vm: Vm, saved: CpuState) -> None:
    """Control registers, and whatever the back-end derives from them."""
    vcpu = vm.vcpu
    vcpu.efer = saved.efer & ~Efer.LMA
    vm.backend.restored()
    vcpu.cr4 = saved.cr4
    vcpu.cr3 = saved.cr3
    vcpu.cr0 = saved.cr0 & ~Cr0.PG
    vcpu.cr0 = saved.cr0
    vm.paging.restore(saved.cr0, saved.cr3, saved.cr4, saved.efer, saved.pdptes)
    vm.backend.control_changed()
    vm.mmu.drop_roots()
    vm.mmu.load(user=False)  # as a kernel does; the back-end changes to users' when it enters them
    vm.backend.tables_changed()


def _listed(segment: Segment) -> list[int]:
    return [segment.selector, segment.base, segment.limit, segment.attributes]


def _wide(state: memoryview[int], at: int) -> int:
    return state[at] | state[at + 1] << 32


def _own(vm: Vm, attributes: int) -> int:
    """A data segment's attributes with the guest's own level, whatever the back-end has made of it."""
    if not isinstance(vm.vcpu, DeprivilegedVcpu):
        return attributes
    return with_dpl(attributes, own_dpl(attributes)) & ~_LOST


def _shown(vm: Vm, saved: CpuState, attributes: int) -> int:
    """The same, as the back-end has it."""
    if not isinstance(vm.vcpu, DeprivilegedVcpu) or not attributes & PRESENT:
        return attributes
    return deprivileged(attributes, 0 if saved.cpl == 3 and vm.backend.ring == 3 else vm.backend.ring)
