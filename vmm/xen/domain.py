"""A domain: all that a Xen guest has in place of a PC, put together.

Knows the parts and how a domain starts. Which hypercall does what stands in `hypercalls`; who runs the guest's code is a back-end's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmm.clock import SECOND, Alarm
from vmm.cpu_state import Cpu
from vmm.exits import RESUME, WAIT, Outcome
from vmm.icount import DATE
from vmm.machine import FRAME
from vmm.mmu.direct import DirectMmu
from vmm.mmu.frames import Frames, Kind, Refused
from vmm.mmu.host import HostSpace
from vmm.start import CONSOLE_PORT, STORE_PORT, Domain
from vmm.x86.bits import Vector
from vmm.xen.arguments import Arguments
from vmm.xen.batches import Preempted
from vmm.xen.channels import TIMER, Channel, Channels, State
from vmm.xen.descriptors import XenDescriptors
from vmm.xen.grants import Grants
from vmm.xen.hypercalls import call
from vmm.xen.run_state import RunState
from vmm.xen.shared_info import SharedInfo
from vmm.xen.traps import Traps

if TYPE_CHECKING:
    from vmm.vm import Vm
    from vmm.xen.board import XenBoard

HYPERCALL_VECTOR: Final = 0x82
_INT: Final = bytes((0xCD, HYPERCALL_VECTOR))
_ARGUMENTS: Final = (Cpu.EBX, Cpu.ECX, Cpu.EDX, Cpu.ESI, Cpu.EDI)
_PERIOD: Final = 10_000_000  # ns between timer interrupts that nobody asked for, as every new domain has them
_IRET: Final = 23
_HIDDEN = 1 << 1 | 1 << 3 | 1 << 7 | 1 << 9 | 1 << 13 | 1 << 14 | 1 << 16  # VME PSE MCE APIC PGE MCA PAT


class XenDomain:
    """One domain. memory: the guest's memory as its domain builder sees it. granted_ports: I/O ports that it may use. board: its devices."""

    board: XenBoard

    def __init__(self, vm: Vm, host: HostSpace, shared: SharedInfo) -> None:
        machine = vm.machine
        self.vm, self.machine, self.memory, self.clock, self.stats, self.host = vm, machine, vm.memory, vm.clock, vm.stats, host
        self.frames = Frames(machine)
        self.frames.adopt(list(self.memory.frames))
        pages = -(-machine.size // FRAME * 4 // FRAME)  # of the machine-to-physical table: all ones for what is not the guest's
        table = machine.allocate_run(pages)
        self.m2p = machine.words[table * 1024 : table * 1024 + machine.size // FRAME]
        machine.memory[table * FRAME : (table + pages) * FRAME] = b"\xff" * (pages * FRAME)
        for pfn, mfn in enumerate(self.memory.frames):
            self.m2p[mfn] = pfn
        self.mmu = DirectMmu(machine, self.frames, host, list(range(table, table + pages)))
        self.shared = shared
        self.frames.reserve(self.shared.mfn)
        self.channels = Channels(self.shared, self.wake)
        self.descriptors = XenDescriptors(machine, self.frames, self.mmu, host)
        self.traps = Traps(machine, vm.vcpu, self.mmu, self.descriptors, self.shared)
        self.arguments = Arguments(self.mmu)
        self.grants = Grants(machine, self.frames, self.mmu)
        self.polled: tuple[int, ...] = ()
        self.rings: list[int] = []  # frames that devices share with the guest
        self.poll_end: Alarm | None = None
        self.granted_ports: frozenset[int] = frozenset()
        self.console: Callable[[bytes], None] = lambda data: None  # console_io
        self.run_state = RunState()
        self._behind = False  # there is something to do behind this hypercall:
        self._blocks = False
        self.nmi_pending = self.nmi_masked = False
        self.work = 0  # done beside entries looked at, in as much
        self.preempted = False  # a hypercall since this was cleared is to be asked for again
        self.one_shot: Alarm | None = None
        self.periodic: Alarm | None = None
        self.period = _PERIOD

    # -- start -----------------------------------------------------------------------------------------------------------------------

    def start(self, domain: Domain) -> None:
        """Takes over what the domain builder left: hypercall page, page tables, open channels, time. Raises Refused for unsound tables."""
        frames = self.memory.frames
        if domain.hypercall_page is not None:
            at = frames[domain.hypercall_page] * FRAME
            self.machine.memory[at : at + FRAME] = hypercall_page()
        top = frames[domain.top]
        self.share([frames[domain.store], frames[domain.console]])
        self.mmu.pin(top, Kind.TOP)
        self.mmu.use(top)
        self.shared.tell_date(DATE * SECOND if self.vm.icount else time.time_ns() - self.clock.now())
        self.shared.tell_time(self.clock.now())
        for port in (STORE_PORT, CONSOLE_PORT):
            self.channels.open[port] = Channel(State.INTERDOMAIN, (0, port))
        self.set_period(self.period)

    def share(self, rings: list[int]) -> None:
        """The store's frame, the console's, and maybe others that devices write to: for good, so none may become a page table. Raises Refused."""
        for mfn in rings:
            self.frames.take_type(mfn, Kind.WRITABLE)
        self.rings = rings

    # -- hypercalls --------------------------------------------------------------------------------------------------------------------

    def hypercall(self, number: int) -> Outcome:
        """One hypercall: arguments and the result are in the CPU's registers."""
        state = self.machine.state
        try:
            result = call(self, number, state[6], state[2], state[4], state[12], state[14])
        except Preempted as preempted:
            self.preempted = True
            for argument, value in preempted.arguments.items():
                state[_ARGUMENTS[argument]] = value & 0xFFFFFFFF
            state[Cpu.EIP] = state[Cpu.EIP] - len(_INT) & 0xFFFFFFFF
            return RESUME
        if number != _IRET or result:
            state[0] = result & 0xFFFFFFFF
        return self._go_on() if self._behind else RESUME

    def _go_on(self) -> Outcome:
        blocks, self._behind, self._blocks = self._blocks, False, False
        if self.nmi_pending and not self.nmi_masked:
            self.nmi_pending, self.nmi_masked = False, True
            self.traps.raise_exception(Vector.NMI)
        elif blocks and not self.ready():
            self.run_state.block(self.clock.now())
            return WAIT
        return RESUME

    @property
    def spent(self) -> int:
        """Work done for the guest by hypercalls, in page-table entries looked at."""
        return self.mmu.fills + self.mmu.dropped + self.work

    def block(self) -> None:
        """The CPU waits for an event behind this hypercall."""
        self._behind = self._blocks = True

    def send_nmi(self) -> None:
        """A non-maskable interrupt behind this hypercall, or behind the IRET, by hypercall, of the handler that runs."""
        self._behind = self.nmi_pending = True

    def nmi_ended(self) -> None:
        """Its handler returns."""
        self.nmi_masked, self._behind = False, self._behind or self.nmi_pending

    def poll(self, ports: tuple[int, ...], deadline: int) -> None:
        """The CPU waits behind this hypercall for one of some channels, masked or not, or for a time (0: none)."""
        if self.poll_end is not None:
            self.poll_end.cancel()
        self.poll_end = self.clock.at(deadline, self.wake) if deadline else None
        self.polled = ports
        self.block()

    def ready(self) -> bool:
        """Whether a blocked CPU has something to run for."""
        return self.shared.deliverable or any(self.shared.channel_pending(port) for port in self.polled)

    def wake(self) -> None:
        """An upcall is due, or what was polled for."""
        self.vm.vcpu.halted = False

    # -- time ----------------------------------------------------------------------------------------------------------------------------

    def set_timer(self, deadline: int) -> None:
        """One timer interrupt at a time (0: none)."""
        if self.one_shot is not None:
            self.one_shot.cancel()
        self.one_shot = self.clock.at(deadline, self.tick) if deadline else None

    def set_period(self, period: int) -> None:
        """Timer interrupts every `period` nanoseconds while the CPU runs (0: none)."""
        if self.periodic is not None:
            self.periodic.cancel()
        self.period = period
        self.periodic = self.clock.at(self.clock.now() + period, self.tock) if period else None

    def tick(self) -> None:
        """The timer interrupt."""
        self.tell_time()
        self.channels.raise_virtual(TIMER)

    def tock(self) -> None:
        """The periodic one."""
        if not self.vm.vcpu.halted:  # a blocked CPU is not woken by it
            self.tick()
        self.set_period(self.period)

    def tell_time(self) -> None:
        """Updates the time that the guest reads."""
        now = self.clock.now()
        self.shared.tell_time(now)
        self.run_state.run(now)
        if self.run_state.area is not None:
            with suppress(Refused):  # it may not be mapped just now
                self.arguments.write(self.run_state.area, self.run_state.image(now))

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """What CPUID answers: the CPU without what belongs to the VMM, NX among it."""
        a, b, c, d = self.vm.cpuid(leaf, subleaf)
        return a, b, c, d & ~_HIDDEN if leaf == 1 else 0 if leaf == 0x80000001 else d


def hypercall_page() -> bytes:
    """Entry n, 32 bytes each: mov $n,%eax; int $82h; ret. IRET's saves EAX for the frame that it reads and never comes back."""
    entries = []
    for number in range(FRAME // 32):
        code = b"\xb8" + number.to_bytes(4, "little") + _INT + b"\xc3"
        if number == _IRET:
            code = b"\x50" + code[:-1]
        entries.append(code.ljust(32, b"\xcc"))
    return b"".join(entries)
