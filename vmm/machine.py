"""The physical machine: one Unicorn CPU, its host-physical memory, and exact access to the CPU's state.

The only module that imports unicorn. It knows frames, the live CPU state, the hooks that report exits, and the errata of
this CPU (docs/QUIRKS.md). It must not know what an exit means: guests, back-ends and devices are others' business.

The engine runs in one mode for all VMMs (docs/adr/0001): a long-mode host whose 32-bit code runs in compatibility mode. A bare
machine, for a guest with no VMM under it, is in legacy mode instead. Exits are handled inside the engine's callback, on the live state
of the CPU (docs/adr/0002).
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

import unicorn
from unicorn import unicorn_const as uc_const
from unicorn import x86_const as uc_x86
from unicorn.unicorn_py3.unicorn import uclib

from vmm.cpu_state import Cpu, LayoutError, find_exit_check_flag, find_features, find_interrupt_request, find_live_state
from vmm.world import HANDLERS, World
from vmm.x86.descriptors import LONG_CODE
from vmm.x86.svm import ExitCode

FRAME = 4096
MIB = 1 << 20

PHYSICAL_CR0 = 0x8001_0033  # PG WP NE ET MP PE
PHYSICAL_CR4 = 1 << 20 | 1 << 9 | 1 << 5  # SMEP OSFXSR PAE
EFER_HOST = 1 << 11 | 1 << 10 | 1 << 8  # NXE LMA LME

VMM_EXIT = 0x100
"""An intercept arrives as this vector plus its exit code."""
KICK_EXIT = VMM_EXIT + ExitCode.SMI
"""The vector of a kick where kicks exit."""
BARE_PRIVATE = 64 * 1024
"""Bytes at the end of a bare machine's memory that its CPU cannot address."""
DEVICES_END = 1 << 40  # of the CPU's physical address space: page-table entries reach no further
BUS = 1 << 39
"""Where a machine made with `bus` has its bus: the address of guest-physical address 0 on it. It reaches to DEVICES_END."""
_INTERCEPT_BASE = 0x60  # the exit code that stands for bit 0 of the CPU's first word of intercepts
_INTR_PIN = 2  # of the requests that the CPU looks at between instructions
_KICK = 1 << 6  # a system management interrupt, which no device of ours raises
_VIRTUAL, _NMI = 1 << 8, 1 << 9  # and the guest's own
_LONG_MODE, _CODE_64, _SMAP = 1 << 14, 1 << 15, 1 << 23  # in the decoding flags
_NMI_BLOCKED, _NESTED = 1 << 2, 1 << 6  # in those behind them
_AC = 1 << 18  # in EFLAGS
_GUEST_MODE = 1 << 21  # in the decoding flags: intercepts are active

_COMPILED_CODE = 16 * MIB  # the engine's buffer: when it is full all of it is dropped; by default it would grow to 1 GiB
_FLOAT_CONTROL = ("FPCW", "FPSW", "FPTAG", "FOP", "FIP", "FCS", "FDP", "FDS", "MXCSR")
_FLOAT_RESET = {"FPCW": 0x37F, "FPTAG": 0xFFFF, "MXCSR": 0x1F80}  # all exceptions masked, nothing on the stack: as firmware and QEMU leave them
_SLICE = 200_000  # instructions between stops where none can be asked for: 3.6 ms, since each then costs 18 ns
_CONTEXT_HEADER = 40  # bytes in front of the CPU's state in a saved context
_ZERO_FRAME = bytes(FRAME)
_FLUSH_TLB = uc_const.UC_CTL_TLB_FLUSH | 1 << 30  # erratum 10
_DROP_CODE = uc_const.UC_CTL_TB_REMOVE_CACHE | 2 << 26 | 1 << 30

_INTR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
_IN = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p)
_OUT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)
_INSN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_INVALID = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p)
_EDGE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64), ctypes.c_void_p, ctypes.c_void_p)
_LOAD = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_void_p)
_STORE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_uint64, ctypes.c_void_p)


class MachineError(Exception):
    """The engine failed, or is not the CPU that we know: the message says how."""


class NoCode(MachineError):
    """The CPU was to execute where there is no RAM."""


class OutOfFrames(Exception):
    """The machine has no free host-physical frame left."""


class Machine:
    """One CPU and `size` bytes of host-physical memory (a multiple of 4096, below 4 GiB), `runs` of them kept for `allocate_run`.

    memory, words, quads: all of it as bytes, 32-bit and 64-bit words; a host-physical address (divided by the width) indexes it.
    state: the CPU's live state as 32-bit words, indexed by `Cpu`; wide: the same as 64-bit words, of which each is two of those. Exact
    inside a callback and between runs.
    The handlers are called inside the engine: on_interrupt(vector) for every exception and INT, on_invalid() for an
    undefined instruction, on_port(port, size, value or None to read), on_cpuid() for CPUID: True when it was emulated,
    on_fast_call() for SYSENTER and SYSCALL, which returns the instruction's size in bytes.
    bare: the CPU stays in legacy mode and sees `visible` bytes as RAM from address 0 and nothing else of the memory; for the rest of its
    physical addresses on_memory(hpa, size, value or None to read) is called. `allocate` gives frames that it does not see.
    bus: from hpa BUS on, nested tables find device memory; on_memory is called with the offset from BUS.
    kick_exits: a kick is an exit with vector KICK_EXIT between two instructions, whose handler must `stop`; what exits so must be intercepted.
    Erratum 15: no stop is pending then while SYSCALL or SYSENTER looks for its hook.
    shared: VMs of several back-ends are to take turns on it, each in a world of its own. world: whose turn it is.
    """

    def __init__(self, size: int, runs: int = 0, *, bare: bool = False, bus: bool = False, shared: bool = False) -> None:
        self.size = size
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory = memoryview(self._map)
        self.words = self.memory.cast("I")
        self.quads = self.memory.cast("Q")
        self.shared = shared
        self.bare, self.visible = bare, size - BARE_PRIVATE if bare else size
        self._bottom = (size - runs) // FRAME
        self._top = size // FRAME
        self._free = list(range(self._top - 1, self.visible // FRAME, -1)) if bare else _scattered(self._bottom)
        self._uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self._uc.ctl_set_cpu_model(uc_x86.UC_CPU_X86_EPYC)
        self._uc.ctl_set_tcg_buffer_size(_COMPILED_CODE)
        self._handle = self._uc._uch
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._uc.mem_map_ptr(0, self.visible, unicorn.UC_PROT_ALL, self._address)
        self._uc.ctl_exits_enabled(True)  # erratum 8: no address may end a run
        self.on_interrupt: Callable[[int], None] = _unexpected
        self.on_invalid: Callable[[], None] = lambda: _unexpected(6)
        self.on_port: Callable[[int, int, int | None], int] = lambda port, size, value: (1 << 8 * size) - 1
        self.on_cpuid: Callable[[], bool] = lambda: False
        self.on_fast_call: Callable[[], int] = lambda: 0
        self.on_memory: Callable[[int, int, int | None], int] = lambda hpa, size, value: (1 << 8 * size) - 1
        self.on_code: Callable[[int, int], None] = lambda linear, size: None
        self.stop_behind: Callable[[], None] | None = None  # what `stop` does instead where an instruction must not be left in its middle
        self.kick_exits = False
        self._kicking = threading.RLock()  # held by whoever changes what the CPU is asked while the other thread may
        self.running = False
        self._failure: BaseException | None = None
        self._requests, self._requests_found = ctypes.c_uint32(), False  # nobody's, until they are looked for
        self._released_runs: dict[int, list[int]] = {}  # by length
        self._rflags = ctypes.c_uint64()
        self._cr3 = ctypes.c_uint64()
        self._read_flags = (self._handle, uc_x86.UC_X86_REG_RFLAGS, ctypes.byref(self._rflags))
        self._write_cr3 = (self._handle, uc_x86.UC_X86_REG_CR3, ctypes.byref(self._cr3))
        self._find_state()
        self.set_float_state(_FLOAT_RESET)
        self._add_hooks(cpuid=shared or not bare and not bus)
        self._state_bytes = memoryview(self._image).cast("B")
        self._reset = self._state_bytes.tobytes(), bytes(self.features or b""), _handlers(self)
        self.world = World(*self._reset)
        self._watched = False
        if bare:
            self._become_bare()
        if bus or shared:
            self._map_devices(BUS, DEVICES_END - BUS, 0)

    # -- frames ------------------------------------------------------------------------------------------------------

    def allocate(self, count: int) -> list[int]:
        """Takes `count` frames; returns their numbers (hfn), scattered over memory, contents undefined, but never another world's."""
        held = self.world.frames
        if count > min(len(self._free), self.world.most - len(held)):
            raise OutOfFrames(f"{count} frames wanted, {min(len(self._free), self.world.most - len(held))} free")
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        held.update(taken)
        return taken

    def arrange(self, first: Sequence[int], last: Sequence[int]) -> None:
        """Of what is free, `allocate` gives these frames first, from the end on, and those last. Raises OutOfFrames where one is not free."""
        chosen = {*first, *last}
        if len(chosen) != len(first) + len(last) or not chosen <= set(self._free):
            raise OutOfFrames("a frame is wanted that is not free")
        self._free = [*last, *(hfn for hfn in self._free if hfn not in chosen), *first]

    def claim(self, frames: Sequence[int]) -> None:
        """Takes these very frames. Raises OutOfFrames where one is not free."""
        self.arrange(frames, ())
        self.allocate(len(frames))

    def allocate_run(self, count: int) -> int:
        """Takes `count` consecutive frames, below those taken before or where an equal run was given back; returns the first hfn, contents zero."""
        if released := self._released_runs.get(count):
            first = released.pop()
        elif self._top - count < self._bottom:
            raise OutOfFrames(f"{count} consecutive frames wanted, {self._top - self._bottom} kept")
        else:
            first = self._top = self._top - count
        self.world.runs[first] = count
        return first

    def release(self, frames: list[int]) -> None:
        """Gives frames back."""
        self._free.extend(frames)
        self.world.frames.difference_update(frames)

    def clear(self, hfn: int) -> None:
        """Fills a frame with zeroes."""
        self.memory[hfn * FRAME : (hfn + 1) * FRAME] = _ZERO_FRAME

    # -- worlds ------------------------------------------------------------------------------------------------------

    def new_world(self, most: int) -> World:
        """A CPU as after a reset, with up to `most` frames, for a VM that takes turns with others on a shared machine."""
        return World(*self._reset, most)

    def switch(self, world: World) -> None:
        """A world switch, between runs: the CPU becomes another VM's. Compiled code goes by frame, of which the worlds share none: it stays."""
        before, self.world = self.world, world
        if before is world:
            return
        before.state = self._state_bytes.tobytes()
        before.handlers = _handlers(self)
        self._state_bytes[:] = world.state
        for name, handler in zip(HANDLERS, world.handlers, strict=True):
            setattr(self, name, handler)
        if self.features is not None and before.features != world.features:
            self.features[:] = list(struct.unpack("<8Q", world.features))
        asked = self._requests.value
        before.requests = asked & (_INTR_PIN | _VIRTUAL | _NMI)
        self._requests.value = asked & ~before.requests | world.requests
        uclib.uc_ctl(self._handle, _FLUSH_TLB)

    def discard(self, world: World) -> None:
        """The end of a world, which is not the present one: its frames are cleared and free again."""
        for end in list(world.ends):
            end()
        for first, count in world.runs.items():
            self.memory[first * FRAME : (first + count) * FRAME] = bytes(count * FRAME)
            self._released_runs.setdefault(count, []).append(first)
        for hfn in world.frames:
            self.clear(hfn)
        self._free.extend(sorted(world.frames))
        world.frames, world.runs = set(), {}
        self.flush_code()

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self, most: int = 0) -> None:
        """Runs the CPU from its current state until `stop` or `kick`, or for a while; re-raises what a handler raised (erratum 9).

        most: instructions after which the run ends, not 0 on a machine that counts them.
        """
        self.running = True
        count = most or (0 if self.precise_kicks else _SLICE)
        begin = ctypes.c_uint64(self.wide[Cpu.EIP >> 1])
        error = uclib.uc_emu_start(self._handle, begin, ctypes.c_uint64(0), ctypes.c_uint64(0), ctypes.c_size_t(count))
        with self._kicking:
            self.running = False
            if self.kick_exits:
                self._requests.value &= ~_KICK  # one that came too late
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if error == uc_const.UC_ERR_FETCH_PROT:
            raise NoCode(f"no code at {self.wide[Cpu.EIP >> 1]:#x}")
        if error:
            raise MachineError(f"the engine stopped with error {error} at {self.wide[Cpu.EIP >> 1]:#x}")

    def stop(self) -> None:
        """Ends the run, from inside a handler: before the next instruction."""
        if self.stop_behind is None:
            uclib.uc_emu_stop(self._handle)
        else:
            self.stop_behind()

    def take_kick(self) -> None:
        """A kick has made the CPU exit: ends the run."""
        with self._kicking:
            self._requests.value &= ~_KICK
        self.stop()

    def kick(self) -> None:
        """Asks a running CPU, from another thread, to stop at the start of a block. Some kicks are lost (erratum 3): repeat.

        Without `precise_kicks` nothing is asked: the run ends by itself then, after so many instructions.
        """
        with self._kicking:
            if not self.running or not self.precise_kicks:
                return
            if self.kick_exits:
                first_byte = ctypes.c_uint8.from_address(ctypes.addressof(self._requests))  # the CPU itself may be writing the others
                first_byte.value |= _KICK
                self._leave_chain.value = 0xFFFF
            else:
                uclib.uc_emu_stop(self._handle)

    # -- state -------------------------------------------------------------------------------------------------------

    def float_state(self) -> dict[str, int]:
        """The x87 and SSE registers, between runs. R0 to R7 are the x87's by their places, not from the top, with the exponent above 64 bits."""
        read, values = self._uc.reg_read, {name: self._uc.reg_read(_register(name)) for name in _FLOAT_CONTROL}
        for n in range(8):
            mantissa, exponent = read(_register(f"FP{n}"))
            values[f"R{n}"] = exponent << 64 | mantissa
        return values | {f"XMM{n}": read(_register(f"XMM{n}")) for n in range(16)}

    def set_float_state(self, values: Mapping[str, int]) -> None:
        """Writes what `float_state` has read, of this or of another machine."""
        for name, value in values.items():
            if name[0] == "R":
                self._uc.reg_write(_register(f"FP{name[1:]}"), (value & (1 << 64) - 1, value >> 64))
            else:
                self._uc.reg_write(_register(name), value)

    def flags(self) -> int:
        """EFLAGS, the lazily kept arithmetic flags included."""
        uclib.uc_reg_read(*self._read_flags)
        return self._rflags.value & 0xFFFFFFFF

    def set_flags(self, value: int) -> None:
        """Writes EFLAGS. Inside a run the arithmetic flags and DF are kept apart from the word, between runs in it."""
        state = self.state
        state[Cpu.CC_OP] = 1  # "the arithmetic flags are in cc_src"
        state[Cpu.CC_SRC] = value & 0x8D5
        state[Cpu.DF] = 0xFFFFFFFF if value & 0x400 else 1
        state[Cpu.EFLAGS] = value & ~0xCD5 & 0xFFFFFFFF | 2 if self.running else value | 2
        state[Cpu.HFLAGS] = state[Cpu.HFLAGS] & ~0x100 | value & 0x100

    def set_segment(self, at: int, selector: int, base: int, limit: int, attributes: int) -> None:
        """Writes a segment register's hidden part; `attributes` is the descriptor's second word. `set_mode` must follow."""
        state = self.state
        state[at] = selector
        state[at + Cpu.BASE] = base & 0xFFFFFFFF
        state[at + Cpu.BASE + 1] = base >> 32
        state[at + Cpu.LIMIT] = limit
        state[at + Cpu.ATTRIBUTES] = attributes

    def set_mode(self, cpl: int, *, long: bool = False) -> None:
        """Makes up the decoding flags for code at `cpl` from the segments now in CS, SS, DS and ES. long: CS may be one of 64-bit code."""
        state = self.state
        if long and state[Cpu.CS + Cpu.ATTRIBUTES] & LONG_CODE:
            state[Cpu.HFLAGS] = state[Cpu.HFLAGS] & ~0x807B | cpl | _CODE_64 | 0x30
            return
        mode = state[Cpu.HFLAGS] & ~0x807B | cpl  # clears CPL, interrupt shadow, CS32, SS32, ADDSEG, CS64
        mode |= (state[Cpu.CS + Cpu.ATTRIBUTES] >> 22 & 1) << 4 | (state[Cpu.SS + Cpu.ATTRIBUTES] >> 22 & 1) << 5
        if not mode & 0x10 or state[Cpu.DS + Cpu.BASE] or state[Cpu.ES + Cpu.BASE] or state[Cpu.SS + Cpu.BASE]:
            mode |= 0x40
        state[Cpu.HFLAGS] = mode

    def set_trap_flag(self, on: bool) -> None:
        """Single-stepping by the CPU: a debug exception after each instruction."""
        state = self.state
        state[Cpu.EFLAGS] = state[Cpu.EFLAGS] & ~0x100 | on << 8
        state[Cpu.HFLAGS] = state[Cpu.HFLAGS] & ~0x100 | on << 8

    def set_task_switched(self, on: bool) -> None:
        """CR0.TS alone, without the TLB flush of a CR0 write."""
        state = self.state
        state[Cpu.CR0] = state[Cpu.CR0] & ~8 | on << 3
        state[Cpu.HFLAGS] = state[Cpu.HFLAGS] & ~0x800 | on << 11

    def clear_event(self) -> None:
        """Errata 1 and 2: forget the event that was just taken, or the next one is misread."""
        self.state[self.old_exception] = 0xFFFFFFFF
        self.state[self.is_int] = 0

    def set_cr0(self, value: int) -> None:
        """Writes physical CR0 with all its side effects (flushes the TLB)."""
        self._uc.reg_write(uc_x86.UC_X86_REG_CR0, value)

    def set_cr4(self, value: int) -> None:
        """Writes physical CR4 with all its side effects (flushes the TLB)."""
        self._uc.reg_write(uc_x86.UC_X86_REG_CR4, value)

    def set_cr3(self, value: int) -> None:
        """Loads physical CR3 and so flushes the TLB."""
        self._cr3.value = value
        uclib.uc_reg_write(*self._write_cr3)

    def flush_tlb(self) -> None:
        """Forgets all cached address translations, the guest's too where CR3 is the guest's own."""
        if not self.state[Cpu.CR0] >> 31:  # where a load of CR3 forgets nothing
            uclib.uc_ctl(self._handle, _FLUSH_TLB)
            return
        self._cr3.value = self.wide[Cpu.CR3 >> 1]
        uclib.uc_reg_write(*self._write_cr3)

    def flush_code(self) -> None:
        """Drops all code that the engine has compiled."""
        self._uc.ctl_flush_tb()

    def drop_code(self, linear: int, size: int) -> None:
        """Drops the compiled code of `size` bytes of one page, at a linear address that could be fetched now (erratum 6)."""
        uclib.uc_ctl(self._handle, _DROP_CODE, ctypes.c_uint64(linear), ctypes.c_uint64(linear + size))

    def enter_long_mode(self, cr3: int) -> None:
        """Switches the CPU, fresh from reset, to the long-mode host that all back-ends share, under the table at `cr3`."""
        self.set_cr4(PHYSICAL_CR4)
        self.set_cr3(cr3)
        self._uc.msr_write(0xC0000080, EFER_HOST)
        self.set_cr0(PHYSICAL_CR0)

    # -- bare machines -----------------------------------------------------------------------------------------------

    def set_intercepts(self, exits: frozenset[int], control_writes: frozenset[int]) -> None:
        """Which acts of the guest exit with vector VMM_EXIT + exit code: by code, writes of control registers by number.

        Writes of debug registers and reads of DR7 do too: breakpoints that this CPU is told of stop the engine.
        """
        state = self.state
        word = sum(1 << code - _INTERCEPT_BASE for code in exits)
        state[self.controls + 4], state[self.controls + 5] = word & 0xFFFFFFFF, word >> 32
        state[self.controls + 6] = sum(1 << number for number in control_writes) << 16
        state[self.controls + 7] = 0xFF << 16 | 1 << 7 | 1 << 5
        state[Cpu.HFLAGS] |= _GUEST_MODE

    def set_interrupt_pin(self, level: bool) -> None:
        """The CPU's INTR pin. While it is high an exit comes at the first instruction boundary where the CPU takes interrupts."""
        # Without the lock of `kick`, which takes longer: if one comes in between, the run ends, and the next begins with setting the pin.
        if level:
            self._requests.value |= _INTR_PIN
            if self.stop_behind is not None:
                self.stop_behind()
            elif self.running:
                self._leave_chain.value = 0xFFFF
        else:
            self._requests.value &= ~_INTR_PIN

    def set_nesting(self, on: bool) -> None:
        """Whether the CPU walks the nested tables that VMRUN was given, below the guest's."""
        self.state[Cpu.HFLAGS2] = self.state[Cpu.HFLAGS2] & ~_NESTED | (_NESTED if on else 0)
        self.flush_tlb()

    def find_requests(self) -> None:
        """In a guest that VMRUN has entered with a virtual interrupt: finds the CPU's pending requests by it. Raises LayoutError."""
        if self._requests_found:
            return
        candidates, self._leave_chain = find_interrupt_request(self._state_address, _VIRTUAL)
        for self._requests in candidates:
            if len(candidates) == 1 or self._try_kick():
                self._requests_found = True
                return
        raise LayoutError(f"the virtual interrupt in the CPU's pending requests: none of {len(candidates)} candidates is it")

    def _try_kick(self) -> bool:
        """Whether a kick among these requests makes the guest exit, which exits for want of memory otherwise."""
        exits: list[int] = []

        def handle(vector: int) -> None:
            exits.append(vector)
            self._requests.value &= ~_KICK
            self.clear_event()
            self.stop()

        before, self.on_interrupt = self.on_interrupt, handle
        self._requests.value |= _KICK
        self.run()
        self._requests.value &= ~_KICK
        self.on_interrupt = before
        return exits == [KICK_EXIT]

    @property
    def virtual_interrupt(self) -> bool:
        """Whether an interrupt given by VMRUN, or set here, waits for the guest's IF; its vector is in the VMCB."""
        return bool(self._requests.value & _VIRTUAL)

    @virtual_interrupt.setter
    def virtual_interrupt(self, waits: bool) -> None:
        self._requests.value = self._requests.value & ~_VIRTUAL | waits << 8  # a kick that this loses is repeated

    def raise_nmi(self) -> None:
        """The CPU's NMI pin: in guest mode an exit comes at the next instruction boundary, unless one is being handled. Not from another thread."""
        with self._kicking:
            self._requests.value |= _NMI
        if self.running:
            self._leave_chain.value = 0xFFFF

    def take_nmi(self) -> None:
        """The non-maskable interrupt is delivered: others wait until the guest executes IRET."""
        with self._kicking:
            self._requests.value &= ~_NMI
        self.state[Cpu.HFLAGS2] |= _NMI_BLOCKED

    def write_msr(self, number: int, value: int) -> None:
        """Writes one of the CPU's own MSRs."""
        active = self.state[Cpu.HFLAGS] & _GUEST_MODE
        self.state[Cpu.HFLAGS] ^= active  # an intercept of the engine's own write would leave this function by a long jump
        self._uc.msr_write(number, value)
        self.state[Cpu.HFLAGS] |= active

    def read_msr(self, number: int) -> int:
        """The value of one of the CPU's own MSRs."""
        active = self.state[Cpu.HFLAGS] & _GUEST_MODE
        self.state[Cpu.HFLAGS] ^= active  # as above
        value: int = self._uc.msr_read(number)
        self.state[Cpu.HFLAGS] |= active
        return value

    def count_instructions(self) -> None:
        """Lets runs end exactly where `run` is told to, and kicks nowhere. Nothing may have run before."""
        self.precise_kicks = False
        if self._exit_check_flag is not None:
            ctypes.c_uint8.from_address(self._exit_check_flag).value = 0

    def drop_frame_code(self, hfn: int) -> None:
        """Drops the compiled code of a frame of RAM, wherever the guest has it mapped."""
        state, linear = self.state, 1 << 62 | hfn * FRAME  # no guest computes such an address: no translation of its own is there
        cr0, modes, nesting, flags = state[Cpu.CR0], state[Cpu.HFLAGS], state[Cpu.HFLAGS2], state[Cpu.EFLAGS]
        # With SMAP in force the CPU keeps its translations apart; no guest has it, so none finds the one that this leaves behind.
        state[Cpu.HFLAGS] = modes & ~(_LONG_MODE | _CODE_64 | 3) | _SMAP
        state[Cpu.CR0], state[Cpu.HFLAGS2], state[Cpu.EFLAGS] = cr0 & 0x7FFFFFFF, nesting & ~_NESTED, flags & ~_AC
        self.drop_code(linear, FRAME)
        state[Cpu.CR0], state[Cpu.HFLAGS], state[Cpu.HFLAGS2], state[Cpu.EFLAGS] = cr0, modes, nesting, flags

    def watch_code(self, on_code: Callable[[int, int], None]) -> None:
        """From now on on_code(linear, size) is called for each block that the engine compiles, before it runs. What there is is dropped."""

        self.on_code = on_code
        if not self._watched:
            self._watched = True
            self._callbacks.append(self._hook(uc_const.UC_HOOK_EDGE_GENERATED, _EDGE(self._generated), 0))
        self.flush_code()

    def watch_stores(self, hpa: int, size: int) -> Callable[[], None]:
        """Has the engine look for compiled code at every store to a range, at the price of its speed; the result ends that."""
        callback = _INVALID(lambda handle, data: False)  # never called
        hook, first, last = ctypes.c_size_t(), ctypes.c_uint64(hpa), ctypes.c_uint64(hpa + size - 1)
        error = uclib.uc_hook_add(self._handle, ctypes.byref(hook), uc_const.UC_HOOK_MEM_FETCH_UNMAPPED, callback, None, first, last)
        if error:
            raise MachineError(f"the engine refused a hook: error {error}")
        self._callbacks.append(callback)

        ends = self.world.ends

        def end() -> None:
            uclib.uc_hook_del(self._handle, hook)
            ends.remove(end)

        ends.append(end)
        return end

    def _become_bare(self) -> None:
        """Legacy mode, devices' memory behind RAM, and the CPU's intercepts."""
        self.set_cr0(0x8000_0011)  # the engine begins with long mode active; leaving paging leaves it
        self.set_cr0(0x11)
        self.write_msr(0xC0000080, 0)
        self.set_cr4(0)
        self._map_devices(self.visible, DEVICES_END - self.visible, self.visible)
        # Erratum 14: while a hook covers an address, the engine looks for code that is overwritten at every store. This one is never called.
        self._callbacks.append(self._hook(uc_const.UC_HOOK_MEM_FETCH_UNMAPPED, _INVALID(lambda handle, data: False), 0))
        self._uc.mem_map_ptr(DEVICES_END, BARE_PRIVATE, unicorn.UC_PROT_READ, self._address + self.visible)
        control, permissions = self._free.pop(), self._free[-2:]
        del self._free[-2:]
        for hfn in permissions:
            self.memory[hfn * FRAME : (hfn + 1) * FRAME] = b"\xff" * FRAME
        self.quads[(control * FRAME + 0x48) // 8] = DEVICES_END + min(permissions) * FRAME - self.visible  # the MSR permission map's base
        self.state[self.controls], self.state[self.controls + 1] = control * FRAME - self.visible, DEVICES_END >> 32
        candidates, self._leave_chain = find_interrupt_request(self._state_address)
        for self._requests in candidates:
            if self._try_interrupt_pin():
                return
        raise LayoutError(f"the CPU's INTR pin: none of {len(candidates)} candidates is it")

    def _try_interrupt_pin(self) -> bool:
        """Whether the pin and the intercepts are where they are believed to be."""
        exits: list[int] = []

        def handle(vector: int) -> None:
            exits.append(vector)
            self.set_interrupt_pin(False)
            self.state[Cpu.EIP] = 0
            self.stop()

        self.on_interrupt = handle
        self.memory[0] = 0xF4  # HLT ends the run in any case
        self.set_intercepts(frozenset((ExitCode.INTR,)), frozenset())
        self.set_flags(0x202)
        self.set_interrupt_pin(True)
        self.run()
        self.set_interrupt_pin(False)
        self.set_flags(2)
        self.memory[0], self.on_interrupt = 0, _unexpected
        self.drop_frame_code(0)
        return exits == [VMM_EXIT + ExitCode.INTR]

    def offer(self, features: Mapping[int, int]) -> None:
        """Takes away the instructions whose bits are not in `features` (by `Feature`): before any code runs, and for good.

        Where the engine's own list was not found nothing happens: more instructions run then than CPUID says.
        """
        for word, bits in features.items():
            if self.features is not None:
                self.features[word] &= bits
                self.world.features = bytes(self.features)

    # -- set-up ------------------------------------------------------------------------------------------------------

    def _map_devices(self, hpa: int, size: int, first: int) -> None:
        """Has accesses to `size` bytes from `hpa` come to on_memory, as addresses from `first` on."""
        self._first_device = first
        callbacks = _LOAD(self._load), _STORE(self._store)
        error = uclib.uc_mmio_map(self._handle, ctypes.c_uint64(hpa), ctypes.c_size_t(size), callbacks[0], None, callbacks[1], None)
        if error:
            raise MachineError(f"the engine refused device memory: error {error}")
        self._callbacks += callbacks

    def _find_state(self) -> None:
        """Finds the live CPU state and the exit-check flag; raises LayoutError when it is ambiguous."""
        general = [getattr(uc_x86, f"UC_X86_REG_{name}") for name in ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI")]
        engine = self._handle.value or 0
        size = uclib.uc_context_size(self._handle) - _CONTEXT_HEADER
        address, debug = find_live_state(
            engine,
            size,
            lambda n, value: self._uc.reg_write(general[n], value),
            lambda n, value: self._uc.reg_write(uc_x86.UC_X86_REG_DR0 + n, value),
        )
        self.engine, self._state_address = engine, address
        self._image = (ctypes.c_uint32 * (size // 4)).from_address(address)
        self.state = memoryview(self._image).cast("B").cast("I")
        self.wide = self.state.cast("B")[: size & ~7].cast("Q")
        self.error_code, self.is_int, self.debug, self.old_exception = debug - 4, debug - 3, debug, debug + 24
        place = find_features(address, size)
        self.features = (ctypes.c_uint64 * 8).from_address(place) if place is not None else None
        self.controls = self.old_exception + 2 & ~1  # vm_vmcb, tsc_offset, intercept, intercept_cr_read and _write, ...
        flag = self._exit_check_flag = find_exit_check_flag(engine, size)
        self.precise_kicks = flag is not None
        if flag is not None:
            ctypes.c_uint8.from_address(flag).value = 1

    def _add_hooks(self, *, cpuid: bool) -> None:
        """Erratum 15: under a pending stop only the first of these hooks is sure to be called; a lost SYSENTER even goes astray.

        cpuid: CPUID has one; where the CPU's intercepts are on it needs none.
        """
        first = [self._hook(uc_const.UC_HOOK_INSN, _INSN(self._cpuid), uc_x86.UC_X86_INS_CPUID)] if cpuid else []
        self._callbacks: list[ctypes._FuncPointer] = [
            *first,
            self._hook(uc_const.UC_HOOK_INSN, _CALL(self._fast_call), uc_x86.UC_X86_INS_SYSENTER),
            self._hook(uc_const.UC_HOOK_INSN, _CALL(self._fast_call), uc_x86.UC_X86_INS_SYSCALL),
            self._hook(uc_const.UC_HOOK_INSN, _IN(self._in), uc_x86.UC_X86_INS_IN),
            self._hook(uc_const.UC_HOOK_INSN, _OUT(self._out), uc_x86.UC_X86_INS_OUT),
            self._hook(uc_const.UC_HOOK_INTR, _INTR(self._interrupt), 0),
            self._hook(uc_const.UC_HOOK_INSN_INVALID, _INVALID(self._invalid), 0),
        ]

    def _hook(self, kind: int, callback: ctypes._FuncPointer, instruction: int) -> ctypes._FuncPointer:
        hook = ctypes.c_size_t()
        error = uclib.uc_hook_add(
            self._handle, ctypes.byref(hook), kind, callback, None, ctypes.c_uint64(1), ctypes.c_uint64(0), ctypes.c_int(instruction)
        )
        if error:
            raise MachineError(f"the engine refused a hook of kind {kind}: error {error}")
        return callback

    def _fail(self, failure: BaseException) -> None:
        """Erratum 9: a Python exception would vanish in the engine: keep it and stop."""
        if self._failure is None:
            self._failure = failure
        self.stop()

    def _interrupt(self, _handle: int, vector: int, _data: int) -> None:
        try:
            self.on_interrupt(vector)
        except BaseException as failure:
            self._fail(failure)

    def _invalid(self, _handle: int, _data: int) -> bool:
        try:
            self.on_invalid()
        except BaseException as failure:
            self._fail(failure)
        return True

    def _in(self, _handle: int, port: int, size: int, _data: int) -> int:
        try:
            return self.on_port(port, size, None)
        except BaseException as failure:
            self._fail(failure)
            return 0

    def _out(self, _handle: int, port: int, size: int, value: int, _data: int) -> None:
        try:
            self.on_port(port, size, value)
        except BaseException as failure:
            self._fail(failure)

    def _load(self, _handle: int, offset: int, size: int, _data: int) -> int:
        try:
            return self.on_memory(self._first_device + offset, size, None)
        except BaseException as failure:
            self._fail(failure)
            return 0

    def _store(self, _handle: int, offset: int, size: int, value: int, _data: int) -> None:
        try:
            self.on_memory(self._first_device + offset, size, value)
        except BaseException as failure:
            self._fail(failure)

    def _generated(self, _handle: int, block: ctypes._Pointer[ctypes.c_uint64], _before: int, _data: int) -> None:
        try:
            self.on_code(block[0], block[1] >> 16 & 0xFFFF)
        except BaseException as failure:
            self._fail(failure)

    def _cpuid(self, _handle: int, _data: int) -> int:
        try:
            return self.on_cpuid()
        except BaseException as failure:
            self._fail(failure)
            return 1

    def _fast_call(self, _handle: int, _data: int) -> None:
        """SYSENTER and SYSCALL: behind this the CPU adds the instruction's size to EIP, and does nothing else."""
        try:
            size = self.on_fast_call()
            self.wide[Cpu.EIP >> 1] = self.wide[Cpu.EIP >> 1] - size & 0xFFFF_FFFF_FFFF_FFFF
        except BaseException as failure:
            self._fail(failure)


_handlers = attrgetter(*HANDLERS)


def _register(name: str) -> int:
    number: int = getattr(uc_x86, f"UC_X86_REG_{name}")
    return number


def _scattered(count: int) -> list[int]:
    """Frames 1 to count-1 in an order in which neighbours lie apart: nothing may work because gpa equals hpa."""
    return [hfn for start in range(1, 4) for hfn in range(start, count, 3)]


def _unexpected(vector: int) -> None:
    raise MachineError(f"an exit with vector {vector} while nothing is set to handle it")
