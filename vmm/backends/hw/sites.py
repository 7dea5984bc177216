"""Sites: instructions that exit again and again, known as long as neither their bytes nor the tables that lead to them change.

Knows where the CPU stands and which words in host memory a look at an instruction depended on. Knows no instruction's meaning.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.backends.live import code_address, instruction_at
from vmm.cpu_state import Cpu

if TYPE_CHECKING:
    from vmm.vm import Vm

_EIP, _HFLAGS = Cpu.EIP >> 1, int(Cpu.HFLAGS)
_WHERE = itemgetter(Cpu.CS + Cpu.BASE >> 1, Cpu.CR3 >> 1)
_MOST = 4096  # sites that are remembered


class Sites:
    """The sites of one guest whose page tables the CPU walks itself. `forget` must be called when CR0, CR4 or EFER change."""

    def __init__(self, vm: Vm) -> None:
        self.vm, self.state, self.wide, self.quads = vm, vm.machine.state, vm.machine.wide, vm.machine.quads
        self._known: dict[int, tuple[Instruction, int, object, itemgetter[object], object]] = {}

    def forget(self) -> None:
        """The tables may be read in another way from now on."""
        self._known.clear()

    def find(self) -> Instruction | None:
        """The instruction at EIP if it is known. Hot: 0.5 us, where a walk and a decoding take 8."""
        wide = self.wide
        known = self._known.get(wide[_EIP])
        if known is None:
            return None
        instruction, mode, where, words, values = known
        if self.state[_HFLAGS] == mode and _WHERE(wide) == where and words(self.quads) == values:
            return instruction
        return None

    def look(self) -> Instruction | None:
        """The instruction at EIP, to be known from now on; None when it cannot be fetched. The VMM's walk must know the tables in use."""
        instruction = instruction_at(self.vm)
        if instruction is not None:
            if len(self._known) == _MOST:
                self._known.clear()
            if (words := self._words(instruction)) is not None:
                self._known[self.wide[_EIP]] = instruction, self.state[_HFLAGS], _WHERE(self.wide), words, words(self.quads)
        return instruction

    def _words(self, instruction: Instruction) -> itemgetter[object] | None:
        """Gets the words that the look depended on; None when one is not in RAM, or the instruction is on two pages."""
        vm = self.vm
        linear = code_address(vm, vm.vcpu.eip)
        last = linear + len(instruction.raw) - 1
        if (linear ^ last) >> 12:
            return None
        gpa = vm.paging.walk(linear).gpa
        words = [gpa, gpa + len(instruction.raw) - 1, *vm.paging.trail(linear)]
        if any(at >> 12 >= vm.memory.count for at in words):
            return None
        return itemgetter(*{vm.memory.frames[at >> 12] << 9 | (at & 0xFFF) >> 3 for at in words})
