"""One virtual machine: its memory, virtual CPU, devices and back-end, put together, and its run loop.

Knows every part by its contract. Decides only when the guest runs, when devices have their turn and when it ends.
"""

from __future__ import annotations

import gc
import select
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vmm.backends import COUNTING, Options, build, machine
from vmm.backends.bt import BtOptions
from vmm.board import COM1, LOCAL_APIC, build_board
from vmm.boot import load
from vmm.clock import SECOND, Clock
from vmm.console import Console, Recorder
from vmm.cpuid import CPU_32
from vmm.devices import stop as device_stop
from vmm.devices.disk import Storage
from vmm.devices.pci import HOST_BRIDGE
from vmm.errors import InputError
from vmm.events import Delivery, Events
from vmm.exits import End, Stop
from vmm.icount import DATE, InstructionTime
from vmm.lapic_page import LapicPage
from vmm.machine import FRAME, MIB, Machine
from vmm.memory import GuestMemory
from vmm.mmu import Descriptors, Mmu
from vmm.mmu.linear import LinearMemory
from vmm.mmu.nested import NestedMmu
from vmm.mmu.shadow import ShadowMmu
from vmm.mmu.walk import GuestPaging
from vmm.monitor import Monitor
from vmm.network import Port
from vmm.operands import Operands
from vmm.rom import Rom
from vmm.segments import Segments
from vmm.start import CONSOLE_PORT, STORE_PORT, Start
from vmm.stats import Statistics
from vmm.ticker import LONGEST, Ticker
from vmm.vcpu import Vcpu

if TYPE_CHECKING:
    from vmm.boot.bios import Bios
    from vmm.snapshot import Snapshot, Watch
    from vmm.xen.domain import XenDomain

_STOPS = {
    device_stop.StopKind.RESET: End.RESET,
    device_stop.StopKind.POWER_OFF: End.SHUTDOWN,
    device_stop.StopKind.DEBUG_EXIT: End.REPORTED,
}


def machine_for(memory_mib: int, options: Options | None = None) -> Machine:
    """A physical machine for one VM of so much memory, as the back-end that `options` are for wants it."""
    return machine(options or BtOptions(), memory_mib * MIB)


class Vm:
    """A VM on a machine: `Vm(machine, ...)`, `load(...)`, `run()`.

    memory_mib: guest memory in MiB. options: which back-end, and how it works. disks: in the order primary master, primary slave, ...
    console: where the serial line goes. time_source: virtual time in nanoseconds; real time when None. icount: virtual time is the number of
    instructions retired instead. The parts named below are the back-end's: it puts them under the VM. domain: what a paravirtual guest has in
    place of a PC. cpu_model: the CPU that the guest sees; a back-end that can run another says so.
    network: where its Ethernet adapter is plugged in; None: it has none. bios: the machine starts with it, by `reset`.
    """

    memory: GuestMemory
    paging: GuestPaging
    linear: LinearMemory
    mmu: Mmu
    descriptors: Descriptors
    vcpu: Vcpu
    domain: XenDomain | None = None
    _watch: tuple[str, Watch] | None = None  # what memory held at the snapshot of this identity

    def __init__(
        self,
        machine: Machine,
        *,
        memory_mib: int = 128,
        options: Options | None = None,
        disks: Sequence[Storage] = (),
        console: Console | None = None,
        time_source: Callable[[], int] | None = None,
        icount: bool = False,
        network: Port | None = None,
        bios: Bios | None = None,
    ) -> None:
        if not 1 <= memory_mib <= 3072:
            raise InputError(f"-m {memory_mib}: guest memory must be 1 to 3072 MiB")
        self.machine, self.memory_size = machine, memory_mib * MIB
        self.console: Console = console or Recorder()
        self.stopped: Stop | None = None
        self.start: Start | None = None
        self.stats = Statistics()
        self.options: Options = options or BtOptions()
        if icount and self.options.backend not in COUNTING:
            raise InputError(f"--icount: --backend {self.options.backend} does not count instructions")
        self.icount = InstructionTime(lambda: self.backend.retired()) if icount else None
        self.clock = Clock(self.icount.now if self.icount else time_source)
        self.cpu_model = CPU_32
        self.bios = bios
        self.backend = build(self, self.options)
        self.vcpu.msrs = self.cpu_model.msrs()
        (self.scratch_frame,) = machine.allocate(1)
        self.segments = Segments(self.vcpu, self.linear)
        self.operands = Operands(self.vcpu, self.linear)
        self.events: Delivery = self.domain.traps if self.domain else Events(self.vcpu, self.linear, self.segments)
        self.monitor = Monitor(self)
        self.disks = disks
        self.board = build_board(
            self.memory if self.domain is None else _Detached(self.memory_size),
            self.clock,
            console=self.console.write,
            disks=disks,
            stop=self._device_stop,
            interrupts_changed=self._interrupts_changed,
            date=DATE if icount else None,
            network=network,
            firmware=bios.files(self.memory_size, COM1) if bios else None,
        )
        if network is not None and self.board.adapter is not None:
            network.plug(self.clock, self.board.adapter.receive)
        if bios:
            self._insert_rom(bios)
        self.receive: Callable[[bytes], None] = self.board.serial.receive
        self.lapic_page: LapicPage | None = None
        if isinstance(self.mmu, (ShadowMmu, NestedMmu)):
            (lapic_frame,) = machine.allocate(1)
            self.lapic_page = LapicPage(machine, self.memory, self.mmu, self.board.interrupts.lapic, lapic_frame)
            self.board.bus.attach_memory(LOCAL_APIC, FRAME, self.lapic_page)

    # -- loading ---------------------------------------------------------------------------------------------------------------

    def load(
        self, path: str, *, append: str = "", modules: Sequence[str] = (), initrd: str | None = None, address: int | None = None
    ) -> None:
        """Loads a kernel and sets the virtual CPU to its entry. Raises InputError."""
        if self.domain is None:
            long_mode = self.cpu_model.long_mode
            self.start = load(path, self.memory, append=append, modules=modules, initrd=initrd, address=address, long_mode=long_mode)
            self.backend.start(self.start)
            return
        from vmm.boot.xen import load_domain  # only these guests need it
        from vmm.xen.board import build_xen_board

        if address is not None:
            raise InputError(f"{path}: an address is for flat binaries, and --backend pv runs Xen kernels")
        frames, shared_info = self.memory.frames, self.domain.shared.mfn * FRAME
        self.start = load_domain(path, self.memory, frames, shared_info, append=append, modules=modules, initrd=initrd)
        self.backend.start(self.start)
        board = self.domain.board = build_xen_board(self, self.domain, self.disks)
        for port, device in ((CONSOLE_PORT, board.console), (STORE_PORT, board.store)):
            self.domain.channels.open[port].notify = device.signalled
        self.receive = board.console.receive

    def _insert_rom(self, bios: Bios) -> None:
        if not isinstance(self.mmu, NestedMmu):
            raise InputError("--bios: a BIOS starts in real mode, which takes --backend hw with --mmu nested")
        rom, pci = Rom(self.machine, self.memory, self.mmu, self.board.bus, bios.image), self.board.pci
        bridge = pci.function(HOST_BRIDGE)
        bridge.changed = lambda: rom.set_attributes(pci.attributes())
        bridge.changed()

    def reset(self) -> None:
        """Instead of `load`: the CPU as it comes out of reset, which leads it into the BIOS."""
        assert self.bios is not None, "a CPU without a BIOS has nothing to start with"
        self.start = self.bios.start()
        self.backend.start(self.start)

    # -- snapshots -------------------------------------------------------------------------------------------------------------

    def snapshot(self, parent: Snapshot | None = None) -> Snapshot:
        """All of the guest at this moment, between two runs; the VM can go on. parent: an earlier one, of which the new one tells the changes; if
        this VM took it last, or was made of it, its frames are of no account. Raises InputError for a guest that has none, or has ended.
        """
        from vmm.snapshot import Watch, take  # only these VMs need it

        self.settle()
        if parent is None or self._watch is None or self._watch[0] != parent.identity:
            self._watch = "", Watch(self.memory, {} if parent is None else parent.memory())
        snapshot = take(self, self._watch[1].changed(), parent)
        self._watch = snapshot.identity, self._watch[1]
        return snapshot

    def settle(self) -> None:
        """Between two runs: gets to where all of the guest is in its vCPU, memory and devices. Raises InputError when it ends on the way."""
        stopped, self.stopped = self.stopped, None
        if stopped is not None and stopped.why not in (End.TIMEOUT, End.QUIT):
            self.stopped = stopped
        else:
            self.backend.settle()
        if self.stopped is not None:
            raise InputError(f"snapshot: the guest has ended: {self.stopped.reason}")
        self.stopped = stopped

    def restore(self, snapshot: Snapshot) -> None:
        """Instead of `load`: makes this VM the guest of a snapshot. Raises InputError when it is of another machine."""
        from vmm.snapshot import Watch, restore  # only these VMs need it

        frames = snapshot.memory()
        restore(self, snapshot, frames)
        self._watch = snapshot.identity, Watch(self.memory, frames)

    # -- running ---------------------------------------------------------------------------------------------------------------

    def run(self, timeout: float | None = None) -> Stop:
        """Runs until the guest ends the run, `timeout` seconds have passed, or somebody calls `stop`."""
        end = None if timeout is None else time.monotonic() + timeout
        began, cpu_began = time.monotonic(), time.process_time()
        collecting = gc.isenabled()
        gc.disable()  # what runs allocates little that is cyclic, and a collection takes milliseconds
        try:
            self._run(end, timeout)
        finally:
            if collecting:
                gc.enable()
        self.stats.seconds += time.monotonic() - began
        self.stats.cpu_seconds += time.process_time() - cpu_began
        self.backend.synchronize()
        assert self.stopped is not None
        return self.stopped

    def _run(self, end: float | None, timeout: float | None) -> None:
        with Ticker(self.machine) as ticker:
            while self.stopped is None:
                runnable = self.turn()
                if self.stopped is None and not runnable:
                    ticker.rest()
                    self._sleep(end)
                if end is not None and time.monotonic() > end:
                    self.stop(Stop(End.TIMEOUT, f"time-out after {timeout:g} s"))
                if self.stopped is None and not self.vcpu.halted:
                    ticker.due_in(self.until_next(end))
                    self.backend.run()

    def turn(self) -> bool:
        """Devices and the console have their turn; whether there is anything for the CPU to do behind it."""
        self.clock.run_due()
        keys = self.console.poll()
        if keys:
            self.receive(keys)
        return self.stopped is None and (not self.vcpu.halted or self._wake())

    def stop(self, stop: Stop) -> None:
        """Ends the run; the first reason counts."""
        if self.stopped is None:
            self.stopped = stop
        if self.machine.running:
            self.machine.stop()

    def until_next(self, end: float | None) -> float:
        """Seconds, `LONGEST` at most where nothing is, until something is due; counted instructions end by themselves when it is."""
        deadline = None if self.icount else self.clock.next_deadline()
        left = LONGEST if deadline is None else max(0.0, (deadline - self.clock.now()) / SECOND)
        return left if end is None else max(0.0, min(left, end - time.monotonic()))

    def _wake(self) -> bool:
        """HLT: whether there is something to go on for."""
        domain = self.domain
        if domain.ready() if domain else self.board.interrupts.asserted and self.vcpu.interrupts_on:
            self.vcpu.halted = False
            return True
        if not domain and not self.vcpu.interrupts_on:
            self.stop(Stop(End.DIED, "halted for good: hlt with interrupts disabled"))
        elif self.icount and (deadline := self.clock.next_deadline()) is not None:
            self.icount.skip_to(deadline)
        return False

    def _sleep(self, end: float | None) -> None:
        """Until an interrupt, input or the end. Where instructions are counted there is nothing to wait for."""
        if self.icount and self.clock.next_deadline() is not None:
            return
        seconds = self.until_next(end)
        descriptor = self.console.fileno()
        if descriptor is not None:
            select.select([descriptor], [], [], min(seconds, 0.1))
        else:
            time.sleep(min(seconds, LONGEST))

    def _interrupts_changed(self) -> None:
        if self.start is not None:  # devices settle their lines while they are built
            self.backend.interrupts_changed(self.board.interrupts.asserted)

    def _device_stop(self, asked: device_stop.Stop) -> None:
        self.stop(Stop(_STOPS[asked.kind], f"{asked.kind.value} by the guest ({asked.by})", asked.value))

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """What CPUID answers."""
        return self.cpu_model.cpuid(leaf, subleaf)


class _Detached:
    """Memory for the board of a guest that has no PC: nothing is there."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(size)

    def write(self, gpa: int, data: bytes) -> None:
        """Goes nowhere."""
