"""Sites: instructions that exit again and again, known as long as neither their bytes nor the tables that lead to them change.

Knows where the CPU stands and which words in host memory a look at an instruction depended on. Knows no instruction's meaning.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.backends.live import code_address, instruction_at
from vmm.cpu_state import Cpu
from vmm.mmu.footprint import Words, footprint

if TYPE_CHECKING:
    from vmm.vm import Vm

_EIP, _HFLAGS = Cpu.EIP >> 1, int(Cpu.HFLAGS)
_WHERE = itemgetter(Cpu.CS + Cpu.BASE >> 1, Cpu.CR3 >> 1)
_MOST = 4096  # sites that are remembered


class Sites:
    """The sites of one guest whose page tables the CPU walks itself. `forget` must be called when CR0, CR4 or EFER change."""

    def __init__(self, vm: Vm) -> None:
        self.vm, self.state, self.wide, self.quads = vm, vm.machine.state, vm.machine.wide, vm.machine.quads
        self._known: dict[int, tuple[Instruction, int, object, Words, object]] = {}

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
            words = footprint(self.vm.memory, self.vm.paging, [(code_address(self.vm, self.vm.vcpu.eip), len(instruction.raw))])
            if words is not None:
                self._known[self.wide[_EIP]] = instruction, self.state[_HFLAGS], _WHERE(self.wide), words, words(self.quads)
        return instruction
