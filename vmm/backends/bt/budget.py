"""The budget of translated code: how many instructions it may begin before something is due, and what became of them.

Translated code takes each run of instructions off the budget when it enters it (bt/emit.py). Here the budget is given out at each
entry, and turned into the exact count at each exit; near a deadline single steps go on to the very instruction. A repeated string
instruction that runs by itself gets no more iterations than are left. Knows the clock and the budget's word; knows no exits.
"""

from __future__ import annotations

from bt.decode import Instruction
from bt.window import Word
from vmm.clock import Clock
from vmm.cpu_state import Cpu
from vmm.icount import InstructionTime
from vmm.machine import Machine

_UNTIL_CONDITION = (0xA6, 0xA7, 0xAE, 0xAF)  # cmps scas
_ZF = 0x40


class Budget:
    """The budget of one VM's translated code.

    retired: guest instructions completed, as known at the last exit. creeping: the next deadline is nearer than the end of a run: it is
    reached by single steps. next_alone: the instruction that comes next runs by itself.
    """

    def __init__(self, machine: Machine, clock: Clock, time: InstructionTime) -> None:
        self.machine, self.state, self.clock, self.time = machine, machine.state, clock, time
        self.retired = 0
        self.creeping = self.next_alone = False
        self._words: memoryview[int] | None = None  # where the budget was given out; None outside translated code
        self._given = 0
        self._repeated: Instruction | None = None  # the repeated instruction that runs by itself
        self._begun = self._kept_back = self._allowed = 0  # its ECX when last looked at; iterations that it was not given, and was
        self._cut = False  # whether something is due before it is done

    def run_due(self) -> None:
        """Runs the alarms that are due at this instruction."""
        if not self._left():
            self.creeping = False
            self.clock.run_due()

    def enter(self, words: memoryview[int]) -> None:
        """Translated code with these words is about to run. It goes on by an instruction at least, even if the clock wants to stand still."""
        self._given = words[Word.BUDGET >> 2] = max(1, self._left())
        self._words = words

    def steps(self) -> bool:
        """Whether the next instruction is to run by itself."""
        alone, self.next_alone = self.next_alone, False
        return alone or self.creeping

    def go_on(self, words: memoryview[int]) -> bool:
        """Whether translated code may go on where it exited, at once."""
        if self.creeping or not self._left():
            return False
        self.enter(words)
        return True

    def stop(self) -> None:
        """Translated code may not begin another run."""
        if self._words is not None:
            self._given = self._words[Word.BUDGET >> 2] = 0

    def _left(self) -> int:
        """Instructions until something is due."""
        return self.time.left(self.clock.next_deadline())

    def leave(self, unfinished: int) -> None:
        """Translated code has exited, with so many instructions taken off that it has not done. Harmless when that is known already.

        A user may have written the word: what it says then is not believed beyond what was given out.
        """
        words = self._words
        if words is None:
            return
        self._words = None
        left = words[Word.BUDGET >> 2] + unfinished & 0xFFFFFFFF
        self.retired += self._given - left if left <= self._given else self._given
        if self._repeated is not None:
            self.note_iterations()
            self._set_ecx(self._ecx() + self._kept_back)
            self._repeated = None

    def overdrawn(self, length: int) -> None:
        """A run of so many instructions was longer than what was given out: when something is due before it ends, steps lead there."""
        self.creeping = self._left() < length

    def alone(self, instruction: Instruction, *, one: bool) -> None:
        """A repeated instruction is about to run by itself: for one iteration, or for as many as there are instructions left."""
        self._repeated = instruction
        wanted = self._ecx()
        self._cut = not one and wanted >= self._given
        self._begun = self._allowed = min(wanted, self._given) if self._cut else wanted
        self._kept_back = wanted - self._begun
        self._set_ecx(self._begun)

    def note_iterations(self) -> None:
        """The iterations done since this was last called count, within a repeated instruction that runs by itself."""
        if self._repeated is not None:
            now = self._ecx()
            self.retired += self._begun - now
            self._begun = now

    def cut(self, most: int) -> None:
        """In an iteration of a repeated port access: it and those behind it may be so many; as many as there is time for at least."""
        wanted = self._ecx() if self._repeated is not None else 0
        if wanted >= (most := max(1, min(most, self._left()))):
            self._cut, self._begun = True, most
            self._kept_back += wanted - most
            self._set_ecx(most)

    def completed(self, *, more: bool = False, iterated: bool = False, waiting: bool = False) -> bool:
        """An instruction that ran by itself is behind us: counts it. False: it is to go on, since something is due between its iterations.

        iterated: one iteration has been done; more: others follow. waiting: there is an interrupt, which may come before the instruction's end.

        One that ends because of what it found does so within its last iteration; one that ends because ECX is 0 counts once more for that.
        """
        repeated = self._repeated
        met = repeated is not None and self._condition_met(repeated)
        cut_off = more or repeated is not None and self._cut and not self._ecx() and not met
        self.leave(0)
        if not cut_off and not met:
            if iterated and (waiting or not self._left()):
                return False
            self.retired += 1
        return not cut_off

    def _condition_met(self, instruction: Instruction) -> bool:
        """Whether a repeated CMPS or SCAS ended because of what it found."""
        if instruction.opcode not in _UNTIL_CONDITION or self._ecx() == self._allowed:  # with ECX 0 it found nothing
            return False
        return bool(self.machine.flags() & _ZF) != instruction.repeats_while_equal

    def _mask(self) -> int:
        assert self._repeated is not None
        return 0xFFFF if self._repeated.address_size == 2 else 0xFFFFFFFF

    def _ecx(self) -> int:
        ecx: int = self.state[Cpu.ECX]
        return ecx & self._mask()

    def _set_ecx(self, value: int) -> None:
        mask = self._mask()
        self.state[Cpu.ECX] = self.state[Cpu.ECX] & ~mask | value & mask
