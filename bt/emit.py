"""Block to translated code, by byte templates.

Knows encodings and the window's layout; allocates nothing: the cache tells it where the code will stand and gives it slots.
Every template keeps two promises. Flags and registers are the guest's at every instruction boundary, so a stub spills what
it needs and touches no flag. And wherever guest memory is touched, the state before the guest's instruction can be had back
by the map's recovery flag, so a fault is precise.

Stubs address the window's words through SS, displaced by its base: CS cannot be written through, and DS, ES, FS and GS may
hold anything after an interrupt out of user mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bt.block import ADJUSTED, CLEAN, ITERATIONS, MIDWAY, RETURNING, SHADOWED, SPILLED, Block, Mode, Site, SiteKind, Translation
from bt.decode import ADDRESS_SIZE, OPERAND_SIZE, Instruction, has_memory_operand, memory_operand, operand_registers, stores_by_override
from bt.sensitive import Class, Row, Treatment
from bt.window import CODE, DOORBELL, FLAGS_CLASS, LOADABLE, RETURNS, RETURNS_SIZE, RING_3, SAME_CODE, WORD_BY_NAME, Word

TRAP_VECTOR = 0xF0
TRAP = bytes((0xCD, TRAP_VECTOR))  # every trapping stub: what is meant stands in its site
MISS = CODE  # window offset of the stub for returns and indirect jumps that no checked entry knows

COUNTER_BYTES = 31  # what a counter takes at the head of a run

_ECX, _EDX = 1, 2
_CS_OVERRIDE, _SS_OVERRIDE = 0x2E, 0x36
_BY_REGISTER = {0x6E: 6, 0x6F: 6, 0xA4: 6, 0xA5: 6, 0xA6: 6, 0xA7: 6, 0xAC: 6, 0xAD: 6, 0xD7: 3, 0x0FF7: 7}  # outs movs cmps lods xlat maskmov
_MOV_SEGMENT = 0x8E
_MOVES_WITH_OFFSET = (0xA0, 0xA1, 0xA2, 0xA3)
_PORT_STRINGS = (0x6C, 0x6D, 0x6E, 0x6F)  # ins outs
_CONDITIONAL_STRINGS = (0xA6, 0xA7, 0xAE, 0xAF)  # cmps scas
_IF_BYTE = Word.FLAGS + 1
_STORES = (Treatment.READ_WORD, Treatment.READ_TABLE)
_FLAG_TREATMENTS = (Treatment.PUSH_FLAGS, Treatment.POP_FLAGS, Treatment.CLEAR_IF, Treatment.SET_IF, Treatment.RETURN_FROM_INTERRUPT)
_DIRECT = (Treatment.JUMP, Treatment.BRANCH, Treatment.LOOP, Treatment.CALL)
_PLAIN_TREATMENTS = (*_FLAG_TREATMENTS, Treatment.LOAD_SEGMENT)
# No interrupt behind these: SDM 3A 6.8.3 "Masking Exceptions and Interrupts When Switching Stacks".
_CONDITIONAL_LOOPS = (0xE0, 0xE1)  # loopne loope
_INHIBITING = ("mov ss,r/m", "pop ss", "sti")


@dataclass(frozen=True, slots=True)
class Options:
    """How to translate.

    native_iret: whether iret to user mode may be left to the CPU. stubs_in_cache: emulate in the cache where it can be
    done; otherwise every sensitive instruction traps. counted: each run of instructions counts how often it is entered, for
    about 30 bytes of code. user: the code is a user's: what is privileged traps, and popf leaves IF alone.
    budgeted: each run of instructions first takes its length off the budget, and traps when there is not so much left; what must
    know the time exactly runs alone. popf_copied: popf is copied like any other instruction: a mistake, to be looked at (`--break popf`).
    """

    native_iret: bool = True
    stubs_in_cache: bool = True
    counted: bool = False
    user: bool = False
    budgeted: bool = False
    popf_copied: bool = False


class Emitter:
    """Translates one block: `Emitter(...).translate()`.

    at: linear address at which the code will stand. base: the window's linear address. new_slot: allocates a slot and
    returns its window offset. single: control comes back to the VMM behind the block's one instruction.
    """

    def __init__(self, block: Block, mode: Mode, at: int, base: int, new_slot: Callable[[], int], options: Options, single: bool = False) -> None:
        self.block, self.mode, self.at, self.options, self.single = block, mode, at, options, single
        self.new_slot = new_slot
        self.code = bytearray()
        self.translation = Translation(block, mode, at, single=single)
        self.inside = set() if single else {instruction.address for instruction in block.instructions}
        self.fixups: list[tuple[int, int]] = []  # (offset of a rel32 in the code, guest EIP it leads to)
        self.slow_paths: list[tuple[int, Instruction, Row, int]] = []  # (offset of its rel32, instruction, row, cache address to go on at)
        self.starts: dict[int, int] = {}  # guest EIP -> linear address of its translation
        self.exits: dict[int, int] = {}  # guest EIP -> slot
        self.return_points: set[int] = set()
        self.inhibited = False
        self.left = 0  # instructions taken off the budget that are not done before the present one
        self.data = base - mode.ss_base  # added to a window offset: the displacement to it through SS

    def translate(self) -> Translation:
        """Emits the block, the stubs behind it, and the map."""
        falls_to: int | None = None
        code, starts, at, return_points = self.code, self.starts, self.at, self.return_points
        mark, guest, recovery = self.translation.marks.append, self.translation.guests.append, self.translation.recovery.append
        heads = run_heads(self.block) if self.options.counted and not self.mode.careful else None  # a counter is 32-bit code
        budgeted = self.options.budgeted
        runs = run_lengths(self.block) if budgeted and not self.single else {}
        left = self.translation.left.append
        by_runs = budgeted or bool(heads)  # looked at once for each instruction
        for instruction, row in zip(self.block.instructions, self.block.rows, strict=True):
            address = instruction.address
            if falls_to != address and falls_to is not None:
                self.jump(falls_to)
            if address in return_points:
                self.checked_entry(address)
            starts[address] = here = at + len(code)
            mark(here)
            guest(address)
            recovery(SHADOWED if self.inhibited else CLEAN)
            if by_runs:
                if budgeted:
                    left(0 if address in runs else self.left)
                if heads and address in heads:
                    self.count(address)
                if address in runs:
                    self.take(instruction, runs[address])
            if row is not None:
                falls_to = self.sensitive(instruction, row)
                self.left = 0
                continue
            self.inhibited = False
            code += instruction.raw if instruction.segment != _CS_OVERRIDE else self.overridden(instruction)
            falls_to = instruction.next
            if by_runs and self.left:
                self.done(instruction)
        self.left = 0
        for address in self.block.undecodable:
            if falls_to is not None and falls_to != address:
                self.jump(falls_to)
            falls_to = None
            self.mark(address)
            self.trap(Site(SiteKind.UNDEFINED, address, self.translation))
        if falls_to is not None:
            self.jump(falls_to)
        self.finish()
        return self.translation

    # -- plumbing ----------------------------------------------------------------------------------------------------

    @property
    def here(self) -> int:
        """Linear address of what is emitted next."""
        return self.at + len(self.code)

    def put(self, *parts: bytes) -> None:
        """Appends code."""
        for part in parts:
            self.code += part

    def mark(self, guest: int, recovery: int = CLEAN) -> None:
        """From here on cache addresses belong to the instruction at `guest`."""
        translation = self.translation
        translation.marks.append(self.at + len(self.code))
        translation.guests.append(guest)
        translation.recovery.append(recovery)
        if self.options.budgeted:
            translation.left.append(self.left)

    def word(self, offset: int) -> bytes:
        """The displacement of a window word for an access through SS."""
        return (self.data + offset & 0xFFFFFFFF).to_bytes(4, "little")

    def load(self, register: int, offset: int) -> bytes:
        """mov register, ss:[word]"""
        return bytes((0x36, 0x8B, 0x05 | register << 3)) + self.word(offset)

    def store(self, register: int, offset: int) -> bytes:
        """mov ss:[word], register"""
        return bytes((0x36, 0x89, 0x05 | register << 3)) + self.word(offset)

    def save(self, register: int) -> bytes:
        """Spills a register into its SAVED word."""
        return self.store(register, Word.SAVED + 4 * register)

    def restore(self, register: int) -> bytes:
        """Takes a spilled register back."""
        return self.load(register, Word.SAVED + 4 * register)

    def set_byte(self, offset: int, value: int) -> bytes:
        """mov byte ss:[word], value"""
        return b"\x36\xc6\x05" + self.word(offset) + bytes((value,))

    def jump_slot(self, slot: int) -> bytes:
        """jmp ss:[slot]"""
        return b"\x36\xff\x25" + self.word(slot)

    def trap(self, site: Site) -> None:
        """A trapping stub; its site is known by the address behind it, where the CPU reports it."""
        self.put(TRAP)
        self.translation.sites[self.here] = site

    def callout(self, instruction: Instruction, row: Row | None) -> int:
        """Lets the VMM emulate the instruction and go on behind it."""
        self.trap(Site(SiteKind.CALLOUT, instruction.address, self.translation, instruction, row))
        return instruction.next

    def jump(self, target: int) -> None:
        """Goes on at a guest address: directly within the block, else through a slot."""
        if target in self.inside and not self.mode.careful:
            self.near(b"\xe9", target)
        elif self.single or self.mode.careful:
            self.trap(Site(SiteKind.STEPPED, target, self.translation, target=target))
        else:
            self.put(self.jump_slot(self.exit_slot(target)))

    def near(self, opcode: bytes, target: int) -> None:
        """A jump or branch with a rel32 that `finish` fixes: to a place within the block or to a stub behind it."""
        self.put(opcode)
        self.fixups.append((len(self.code), target))
        self.put(bytes(4))

    def exit_slot(self, target: int) -> int:
        """The slot of the jumps out of this block to `target`."""
        slot = self.exits.get(target)
        if slot is None:
            slot = self.exits[target] = self.new_slot()
        return slot

    def translate_entry(self, guest: int) -> Translation:
        """Emits nothing but a checked entry for `guest` that jumps to its translation."""
        self.checked_entry(guest)
        self.mark(guest)
        self.jump(guest)
        self.finish()
        return self.translation

    def checked_entry(self, guest: int) -> None:
        """Where a return or indirect jump arrives whose target may be `guest`: checks, and hands on to the next if it is not."""
        self.mark(guest, MIDWAY)
        slot = self.new_slot()
        self.translation.returns[guest] = (self.here, slot)
        self.put(checked_entry(self.load(_ECX, Word.TARGET), guest, self.jump_slot(slot), self.restore(_ECX)))

    def count(self, head: int) -> None:
        """Adds one to the counter of the run that begins at `head`: in a word of 32 bits, by an addition that touches no flag."""
        counter = self.translation.counters[head] = self.new_slot()
        self.mark(head, MIDWAY)
        self.put(self.save(_ECX), self.load(_ECX, counter), b"\x8d\x49\x01", self.store(_ECX, counter), self.restore(_ECX))  # lea ecx,[ecx+1]
        self.mark(head, SHADOWED if self.inhibited else CLEAN)

    def take(self, instruction: Instruction, length: int) -> None:
        """Takes a run of `length` instructions off the budget, or traps. No flag is touched."""
        address, clean = instruction.address, SHADOWED if self.inhibited else CLEAN
        if instruction.is_repeated_string:
            if instruction.opcode not in _PORT_STRINGS:  # those run alone, always
                self.take_iterations(instruction)
            return
        self.mark(address, MIDWAY)
        self.put(self.save(_ECX), self.load(_ECX, Word.BUDGET), bytes((0x8D, 0x49, -length & 0xFF)), self.store(_ECX, Word.BUDGET))  # lea ecx,[ecx-n]
        self.put(b"\x36\x0f\xb6\x0d" + self.word(Word.BUDGET + 3), b"\xe3\x02")  # movzx ecx,byte [budget+3]: 0 unless negative; jecxz over
        self.left = length
        self.mark(address, SPILLED | _ECX)
        self.trap(Site(SiteKind.OVERDRAWN, address, self.translation))
        self.mark(address, MIDWAY)
        self.put(self.restore(_ECX))
        self.mark(address, clean)

    def take_iterations(self, instruction: Instruction) -> None:
        """The same for a repeated string instruction, which counts once for each iteration and once more: if ECX is so small and the budget
        allows it. Otherwise it runs alone."""
        address, clean = instruction.address, SHADOWED if self.inhibited else CLEAN
        if instruction.prefixes & ADDRESS_SIZE:
            self.trap(Site(SiteKind.ALONE, address, self.translation, instruction))
            return
        self.mark(address, MIDWAY)
        self.put(self.save(_ECX), b"\x36\x0f\xb7\x0d" + self.word(Word.SAVED + 4 * _ECX + 2))  # movzx ecx,word [saved ecx+2]
        self.put(b"\xe3\x02")  # jecxz over
        self.mark(address, SPILLED | _ECX)
        self.trap(Site(SiteKind.ALONE, address, self.translation, instruction))
        self.mark(address, MIDWAY)
        self.put(self.save(_EDX), self.load(_ECX, Word.SAVED + 4 * _ECX), b"\xf7\xd1", self.load(_EDX, Word.BUDGET))  # not ecx
        self.put(b"\x8d\x0c\x0a", self.restore(_EDX), self.store(_ECX, Word.TARGET))  # lea ecx,[edx+ecx]: the budget, less ECX, less one
        self.put(b"\x36\x0f\xb6\x0d" + self.word(Word.TARGET + 3), b"\xe3\x02")
        self.mark(address, SPILLED | _ECX)
        self.trap(Site(SiteKind.ALONE, address, self.translation, instruction))
        self.mark(address, MIDWAY)
        self.put(self.load(_ECX, Word.TARGET), self.store(_ECX, Word.BUDGET), self.restore(_ECX))
        self.left = ITERATIONS
        self.mark(address, clean)

    def done(self, instruction: Instruction) -> None:
        """An instruction of a run is behind us. Iterations that did not happen after all go back to the budget: as many as ECX says,
        and one more for an end by what was found, which comes within the last iteration."""
        if self.left != ITERATIONS:
            self.left -= 1
            return
        self.left = 0
        if instruction.opcode not in _CONDITIONAL_STRINGS:
            return
        any_at_all = self.store(_ECX, Word.TARGET) + self.restore(_ECX) + b"\xe3\x03\x8d\x52\x01" + self.load(_ECX, Word.TARGET)  # jecxz over
        self.mark(instruction.address, MIDWAY)
        self.put(self.save(_EDX), self.load(_EDX, Word.BUDGET), b"\x8d\x14\x0a")  # lea edx,[edx+ecx]
        self.put(bytes((0x74 if instruction.repeats_while_equal else 0x75, len(any_at_all))), any_at_all)  # jz or jnz over
        self.put(self.store(_EDX, Word.BUDGET), self.restore(_EDX))

    def finish(self) -> None:
        """Emits slow paths, branch stubs and slot traps, and fixes every rel32."""
        self.translation.body = len(self.translation.marks)
        self.left = 0 if self.single else 1  # of the run that such an instruction ends
        for field, instruction, row, behind in self.slow_paths:
            self.fix(field, self.here)
            self.mark(instruction.address, SPILLED | _ECX)
            self.put(self.restore(_ECX))
            self.mark(instruction.address)
            self.callout(instruction, row)
            self.put(b"\xe9" + (behind - self.here - 5 & 0xFFFFFFFF).to_bytes(4, "little"))
        self.left = 0
        translation = self.translation
        stubs: dict[int, int] = {}
        for field, target in self.fixups:
            to = self.starts[target] if target in self.inside else stubs.get(target)
            if to is None:
                to = stubs[target] = self.here
                self.mark(target)
                self.jump(target)
            self.fix(field, to)
        for target, slot in self.exits.items():
            self.mark(target)
            translation.slots[slot] = (target, self.here)
            self.trap(Site(SiteKind.CHAIN, target, translation, target=target, slot=slot))
        translation.code = bytes(self.code)

    def fix(self, field: int, to: int) -> None:
        """Writes the rel32 at `field` so that it leads to the linear address `to`."""
        self.code[field : field + 4] = (to - self.at - field - 4 & 0xFFFFFFFF).to_bytes(4, "little")

    # -- instructions: each routine emits one and returns the guest EIP that control falls to, or None ----------------------

    def sensitive(self, instruction: Instruction, row: Row) -> int | None:
        """Emits an instruction that the table names."""
        self.inhibited = row.name in _INHIBITING
        treatment = row.treatment
        if treatment is Treatment.POP_FLAGS and self.options.popf_copied and not self.mode.careful:
            self.mark(instruction.address)
            self.put(instruction.raw)
            return instruction.next
        must_trap = treatment is Treatment.CALLOUT or self.mode.careful or self.must_trap(instruction, treatment)
        if self.single and self.inhibited:
            must_trap = True  # for the VMM to know
        if must_trap or self.options.user and row.klass is Class.PRIVILEGED or row.name == "rdtsc":
            return self.callout(instruction, row)
        return _ROUTINES[treatment](self, instruction, row)

    def port_access(self, instruction: Instruction, row: Row) -> int:
        """An access to a port: the VMM is asked in its midst, and knows that it is the last of its run. A string of them runs by itself."""
        if self.single or instruction.opcode not in _PORT_STRINGS:
            self.put(instruction.raw)
        else:
            self.trap(Site(SiteKind.ALONE, instruction.address, self.translation, instruction))
        return instruction.next

    def must_trap(self, instruction: Instruction, treatment: Treatment) -> bool:
        """Whether this form has no template, or none is wanted."""
        if treatment in (Treatment.NATIVE, Treatment.NOTHING):
            return False
        if treatment in _PLAIN_TREATMENTS and not self.mode.plain:
            return True
        if self.single and treatment in (Treatment.RETURN, Treatment.INDIRECT_JUMP, Treatment.INDIRECT_CALL, Treatment.RETURN_FROM_INTERRUPT):
            return True
        narrow = instruction.prefixes & (OPERAND_SIZE | ADDRESS_SIZE)
        if treatment in (Treatment.LOOP, Treatment.CLEAR_IF, Treatment.SET_IF):
            narrow = 0
        elif instruction.modrm >= 0xC0 and treatment is Treatment.READ_WORD:
            narrow = 0
        elif treatment is Treatment.LOAD_SEGMENT:
            if instruction.segment == _CS_OVERRIDE and self.mode.cs_base:
                return True
            if instruction.opcode == _MOV_SEGMENT:
                narrow &= ADDRESS_SIZE if instruction.modrm < 0xC0 else 0
        elif treatment in _STORES and instruction.segment == _CS_OVERRIDE:
            return True  # to be refused
        flow = treatment.value >= Treatment.JUMP.value
        return bool(narrow) or not (flow or self.options.stubs_in_cache)

    def overridden(self, instruction: Instruction) -> bytes:
        """An instruction with a CS override, which no store can use outside of real mode, as it is where the cache's CS has the guest's base."""
        if not self.mode.real and stores_by_override(instruction):
            self.trap(Site(SiteKind.PROTECTED, instruction.address, self.translation, instruction))
            return b""
        return instruction.raw if self.mode.code_base == self.mode.cs_base else self.through_ss(instruction)

    def through_ss(self, instruction: Instruction) -> bytes:
        """A CS-overridden operand must not find the cache's flat CS where the guest's has a base: it is addressed through SS, the
        difference of the bases added to its displacement."""
        raw, at = instruction.raw, instruction.at
        if instruction.opcode not in _BY_REGISTER and not has_memory_operand(instruction):
            return raw
        prefixes = raw[:at].replace(bytes((_CS_OVERRIDE,)), bytes((_SS_OVERRIDE,)), 1)
        apart = self.mode.cs_base - self.mode.ss_base & 0xFFFFFFFF
        if not apart:
            return prefixes + raw[at:]
        if instruction.opcode in _BY_REGISTER:
            return self.adjusted(instruction, prefixes + raw[at:], apart)
        if instruction.opcode in _MOVES_WITH_OFFSET:
            return prefixes + (int.from_bytes(raw[at:], "little") + apart & 0xFFFFFFFF).to_bytes(4, "little")
        if instruction.opcode in (0x0F38, 0x0F3A):
            prefixes, at = prefixes + raw[at : at + 1], at + 1
        return prefixes + memory_operand(instruction, apart, at=at) + raw[at + len(memory_operand(instruction, at=at)) :]

    def adjusted(self, instruction: Instruction, code: bytes, apart: int) -> bytes:
        """A string instruction or xlat through SS: its index register is moved by the difference of the bases and back."""
        register = _BY_REGISTER[instruction.opcode]
        lea = bytes((0x8D, 0x80 | register << 3 | register))
        self.put(lea + apart.to_bytes(4, "little"))
        self.mark(instruction.address, ADJUSTED | register)
        self.put(code, lea + (-apart & 0xFFFFFFFF).to_bytes(4, "little"))
        return b""

    def segment_prefix(self, instruction: Instruction) -> bytes:
        """The override to repeat in front of a rewritten memory operand."""
        if instruction.segment == _CS_OVERRIDE and self.mode.cs_base == self.mode.ss_base:
            return bytes((_SS_OVERRIDE,))
        return bytes((instruction.segment,)) if instruction.segment else b""

    def nothing(self, instruction: Instruction, row: Row) -> int:
        return instruction.next

    def clear_if(self, instruction: Instruction, row: Row) -> int:
        self.put(self.set_byte(_IF_BYTE, 0))
        return instruction.next

    def set_if(self, instruction: Instruction, row: Row) -> int:
        """Through the doorbell: it traps here when an interrupt waits, and costs one store when none does."""
        self.put(self.set_byte(DOORBELL + _IF_BYTE, 2))
        return instruction.next

    def push_flags(self, instruction: Instruction, row: Row) -> int:
        """The physical flags have IF set and IOPL clear, always: so adding the virtual ones less IF merges them, without a flag touched."""
        self.put(b"\x9c")
        self.mark(instruction.address, MIDWAY)
        self.put(self.save(_ECX), self.save(_EDX), b"\x8b\x0c\x24", self.load(_EDX, Word.FLAGS))  # mov ecx,[esp]
        self.put(b"\x8d\x8c\x11" + (-0x200 & 0xFFFFFFFF).to_bytes(4, "little"), b"\x89\x0c\x24")  # lea ecx,[ecx+edx-200h]; mov [esp],ecx
        self.put(self.restore(_EDX), self.restore(_ECX))
        return instruction.next

    def pop_flags(self, instruction: Instruction, row: Row) -> int:
        """IF from the stack goes into the virtual one, in kernel mode; the CPU's popf takes the rest and ignores IF and IOPL by itself."""
        address = instruction.address
        self.put(self.save(_ECX))
        self.mark(address, SPILLED | _ECX)
        self.put(b"\x8b\x0c\x24", b"\x0f\xb7\x4c\x24\x01")  # mov ecx,[esp]: all of it can be read; movzx ecx,word [esp+1]
        self.put(b"\x36\x0f\xb6\x89" + self.word(FLAGS_CLASS))  # movzx ecx,byte ss:[classes+ecx]
        slow = self.jump_if_zero()
        if not self.options.user:
            self.put(b"\x8d\x49\xfe\xe3\x0a")  # lea ecx,[ecx-2]; jecxz set
            self.put(self.set_byte(_IF_BYTE, 0), b"\xeb\x08")  # jmp behind
            self.put(self.set_byte(DOORBELL + _IF_BYTE, 2))
        self.mark(address, MIDWAY)
        self.put(self.restore(_ECX), b"\x9d")
        self.slow_paths.append((slow, instruction, row, self.here))
        return instruction.next

    def return_from_interrupt(self, instruction: Instruction, row: Row) -> int | None:
        """With nothing unusual in the frame the CPU's own iret goes to user mode, and a jump to where kernel code goes on; the rest is the VMM's."""
        if not self.options.native_iret or self.options.user:
            return self.callout(instruction, row)  # control comes back here only when it returns to the instruction behind
        address = instruction.address
        self.put(self.save(_ECX))
        self.mark(address, SPILLED | _ECX)
        self.put(b"\x8b\x0c\x24")  # mov ecx,[esp]: a fault on the frame is to be met in the CPU's order
        self.put(b"\x0f\xb6\x4c\x24\x04", b"\x36\x0f\xb6\x89" + self.word(RING_3))  # movzx ecx,byte [esp+4]: CS; movzx ecx,byte ss:[ring 3+ecx]
        inward = self.jump_if_zero()
        slow = [self.unless_interrupts_on()]
        self.put(b"\x36\x8a\x0d" + self.word(_IF_BYTE), b"\x36\x88\x0d" + self.word(Word.FLAGS_BEFORE + 1))  # through cl
        self.put(self.set_byte(DOORBELL + _IF_BYTE, 2))
        self.mark(address, MIDWAY)
        self.put(self.restore(_ECX))
        self.mark(address, RETURNING)
        self.put(b"\xcf")
        self.fix(inward, self.here)
        self.mark(address, SPILLED | _ECX)
        slow += self.return_within_the_kernel(address)
        self.slow_paths += [(field, instruction, row, self.here) for field in slow]
        self.jump(instruction.next)  # the slow path ends here when the iret led to the instruction behind
        return None

    def return_within_the_kernel(self, address: int) -> list[int]:
        """An iret that leaves CS as it is: a jump, and a popf for the flags. Returns the rel32s of what is not for us.

        Linux does 40,000 in a boot, to serialize the CPU when it has changed its code.
        """
        self.put(b"\x0f\xb7\x4c\x24\x04", b"\x36\x0f\xb6\x89" + self.word(SAME_CODE))  # movzx ecx,word [esp+4]; movzx ecx,byte ss:[same code+ecx]
        slow = [self.jump_if_zero()]
        self.put(b"\x8b\x4c\x24\x08", self.load_flags_class())  # mov ecx,[esp+8]: all of the frame can be read
        slow.append(self.jump_if_zero())
        self.mark(address, MIDWAY)  # no fault until ECX is again the only register that is spilled
        self.put(self.save(_EDX), b"\x0f\xb7\x4c\x24\x04", self.load(_EDX, Word.CS), b"\xf7\xd2")  # movzx ecx,word [esp+4]; not edx
        self.put(b"\x8d\x4c\x11\x01", self.restore(_EDX))  # lea ecx,[ecx+edx+1]: 0 when it is CS
        self.mark(address, SPILLED | _ECX)
        self.put(b"\xe3\x05\xe9")  # jecxz over
        slow.append(len(self.code))
        self.put(bytes(4), self.load_flags_class())
        self.put(b"\x8d\x49\xfe\xe3\x0a")  # lea ecx,[ecx-2]; jecxz set
        self.put(self.set_byte(_IF_BYTE, 0), b"\xeb\x08")  # jmp behind
        self.put(self.set_byte(DOORBELL + _IF_BYTE, 2))
        self.mark(address, MIDWAY)
        self.put(b"\x59", self.store(_ECX, Word.TARGET), b"\x8d\x64\x24\x04\x9d")  # pop ecx; lea esp,[esp+4]; popf
        self.to_target(address)
        return slow

    def load_flags_class(self) -> bytes:
        """The class of the flags that an iret is to load into ECX: movzx ecx,word [esp+9]; movzx ecx,byte ss:[classes+ecx]."""
        return b"\x0f\xb7\x4c\x24\x09\x36\x0f\xb6\x89" + self.word(FLAGS_CLASS)

    def unless_interrupts_on(self) -> int:
        """Goes to a place that is fixed later unless an iret is to set IF and nothing unusual. Returns the rel32's offset."""
        self.put(self.load_flags_class(), b"\x8d\x49\xfe\xe3\x05\xe9", bytes(4))  # lea ecx,[ecx-2]; jecxz over; jmp
        return len(self.code) - 4

    def jump_if_zero(self) -> int:
        """jecxz over a jump over a jump: goes to a place that is fixed later when ECX is 0. Returns the rel32's offset."""
        self.put(b"\xe3\x02\xeb\x05\xe9")
        self.put(bytes(4))
        return len(self.code) - 4

    def read_word(self, instruction: Instruction, row: Row) -> int:
        """A register operand is loaded whole; memory receives 16 bits through a scratch register."""
        offset = WORD_BY_NAME[row.word]
        modrm = instruction.modrm
        if modrm >= 0xC0 or instruction.opcode == 0x0F20:
            narrow = instruction.prefixes & OPERAND_SIZE and instruction.opcode != 0x0F20  # a control register is read whole
            self.put(b"\x66" if narrow else b"", self.load(modrm & 7, offset))
            return instruction.next
        self.store_from_words(instruction, ((offset, 0, b"\x66"),))
        return instruction.next

    def read_table(self, instruction: Instruction, row: Row) -> int:
        offset = WORD_BY_NAME[row.word]
        self.store_from_words(instruction, ((offset, 0, b"\x66"), (offset + 4, 2, b"")))
        return instruction.next

    def store_from_words(self, instruction: Instruction, stores: tuple[tuple[int, int, bytes], ...]) -> None:
        """Stores words, each (window offset, bytes behind the operand's address, size prefix), into the memory operand."""
        scratch = next(register for register in range(4) if register not in operand_registers(instruction))
        self.put(self.save(scratch))
        self.mark(instruction.address, SPILLED | scratch)
        for offset, extra, size in stores:
            self.put(self.load(scratch, offset), self.segment_prefix(instruction), size, b"\x89", memory_operand(instruction, extra, scratch))
        self.mark(instruction.address, MIDWAY)
        self.put(self.restore(scratch))

    def push_word(self, instruction: Instruction, row: Row) -> int:
        self.put(b"\x36\xff\x35" + self.word(WORD_BY_NAME[row.word]))
        return instruction.next

    def load_segment(self, instruction: Instruction, row: Row) -> int:
        """By the CPU where the VMM has found that the selector may be loaded: this CPU, at another privilege level, cannot tell by itself."""
        if self.options.user:  # of users the CPU can tell
            self.put(instruction.raw)
            return instruction.next
        address, opcode, modrm = instruction.address, instruction.opcode, instruction.modrm
        self.put(self.save(_ECX))
        self.mark(address, SPILLED | _ECX)
        if opcode != _MOV_SEGMENT:
            self.put(b"\x0f\xb7\x0c\x24")  # movzx ecx,word [esp]
        elif modrm >= 0xC0:
            self.put(bytes((0x0F, 0xB7, 0xC8 | modrm & 7)))
        else:
            self.put(self.segment_prefix(instruction), b"\x0f\xb7", memory_operand(instruction, 0, _ECX))
        self.put(b"\x36\x0f\xb6\x89" + self.word(LOADABLE))  # movzx ecx,byte ss:[loadable+ecx]
        slow = self.jump_if_zero()
        self.put(self.restore(_ECX))
        self.mark(address)
        self.put(instruction.raw)
        self.slow_paths.append((slow, instruction, row, self.here))
        return instruction.next

    def jump_to(self, instruction: Instruction, row: Row) -> int:
        return instruction.relative_target()

    def branch(self, instruction: Instruction, row: Row) -> int:
        self.near(bytes((0x0F, 0x80 | instruction.opcode & 0xF)), instruction.relative_target())
        return instruction.next

    def loop(self, instruction: Instruction, row: Row) -> int:
        """These have no rel32 form: the short one jumps over a jump."""
        prefix = b"\x67" if instruction.prefixes & ADDRESS_SIZE else b""
        if instruction.opcode in _CONDITIONAL_LOOPS:
            self.put(b"\xeb\x00")  # jmp over nothing: this CPU loses flags that are set in the same block when ECX ends such a loop
        self.put(prefix + bytes((instruction.opcode, 2)) + b"\xeb\x05")
        self.near(b"\xe9", instruction.relative_target())
        return instruction.next

    def call(self, instruction: Instruction, row: Row) -> None:
        self.put(b"\x68" + instruction.next.to_bytes(4, "little"))
        self.mark(instruction.address, MIDWAY)
        self.return_points.add(instruction.next)
        self.jump(instruction.relative_target())

    def to_target(self, address: int) -> None:
        """Jumps where ECX says, by the table of checked entries; ECX is spilled."""
        self.mark(address, MIDWAY)
        table = RETURNS + self.mode.index * RETURNS_SIZE
        self.put(b"\x0f\xb7\xc9", b"\x36\xff\x24\x8d" + self.word(table))  # movzx ecx,cx; jmp ss:[table+4*ecx]

    def ret(self, instruction: Instruction, row: Row) -> None:
        address = instruction.address
        self.put(self.save(_ECX))
        self.mark(address, SPILLED | _ECX)
        self.put(b"\x59")  # pop ecx
        self.mark(address, MIDWAY)
        if instruction.opcode == 0xC2:
            self.put(b"\x8d\xa4\x24" + instruction.raw[-2:] + b"\0\0")  # lea esp,[esp+n]
        self.put(self.store(_ECX, Word.TARGET))
        self.to_target(address)

    def load_target(self, instruction: Instruction) -> None:
        """The r/m operand into ECX, spilled before, and into TARGET."""
        self.put(self.save(_ECX))
        self.mark(instruction.address, SPILLED | _ECX)
        if instruction.modrm >= 0xC0:
            self.put(bytes((0x8B, 0xC8 | instruction.modrm & 7)))
        elif instruction.segment == _CS_OVERRIDE and self.mode.cs_base:
            apart = self.mode.cs_base - self.mode.ss_base & 0xFFFFFFFF
            self.put(bytes((_SS_OVERRIDE, 0x8B)), memory_operand(instruction, apart, _ECX))
        else:
            self.put(self.segment_prefix(instruction), b"\x8b", memory_operand(instruction, 0, _ECX))
        self.put(self.store(_ECX, Word.TARGET))

    def indirect_jump(self, instruction: Instruction, row: Row) -> None:
        self.load_target(instruction)
        self.to_target(instruction.address)

    def indirect_call(self, instruction: Instruction, row: Row) -> None:
        self.load_target(instruction)
        self.put(b"\x68" + instruction.next.to_bytes(4, "little"))
        self.return_points.add(instruction.next)
        self.to_target(instruction.address)


def run_heads(block: Block) -> set[int]:
    """Where runs of instructions begin that are executed together unless something interrupts them: at the block's entry, behind
    every instruction of the table, and where jumps within the block lead."""
    heads, falls_to = {block.entry}, block.entry
    for instruction, row in zip(block.instructions, block.rows, strict=True):
        if instruction.address != falls_to:
            heads |= {instruction.address, falls_to}
        falls_to = instruction.next
        if row is not None:
            heads.add(falls_to)
            if row.treatment in _DIRECT:
                heads.add(instruction.relative_target())
    heads.add(falls_to)
    return heads


def run_lengths(block: Block) -> dict[int, int]:
    """Heads of runs to their lengths, where repeated string instructions are runs of their own."""
    heads = run_heads(block)
    for instruction in block.instructions:
        if instruction.is_repeated_string:
            heads |= {instruction.address, instruction.next}
    lengths: dict[int, int] = {}
    head = block.entry
    for instruction in block.instructions:
        if instruction.address in heads:
            head = instruction.address
            lengths[head] = 0
        lengths[head] += 1
    return lengths


def checked_entry(load_target: bytes, guest: int, onward: bytes, restore: bytes) -> bytes:
    """load ecx from TARGET; lea ecx,[ecx-guest]; jecxz over; onward; restore ecx."""
    return load_target + b"\x8d\x89" + (-guest & 0xFFFFFFFF).to_bytes(4, "little") + bytes((0xE3, len(onward))) + onward + restore


_ROUTINES: dict[Treatment, Callable[[Emitter, Instruction, Row], int | None]] = {
    Treatment.NATIVE: Emitter.port_access,
    Treatment.NOTHING: Emitter.nothing,
    Treatment.CLEAR_IF: Emitter.clear_if,
    Treatment.SET_IF: Emitter.set_if,
    Treatment.PUSH_FLAGS: Emitter.push_flags,
    Treatment.POP_FLAGS: Emitter.pop_flags,
    Treatment.RETURN_FROM_INTERRUPT: Emitter.return_from_interrupt,
    Treatment.READ_WORD: Emitter.read_word,
    Treatment.PUSH_WORD: Emitter.push_word,
    Treatment.READ_TABLE: Emitter.read_table,
    Treatment.LOAD_SEGMENT: Emitter.load_segment,
    Treatment.JUMP: Emitter.jump_to,
    Treatment.BRANCH: Emitter.branch,
    Treatment.LOOP: Emitter.loop,
    Treatment.CALL: Emitter.call,
    Treatment.RETURN: Emitter.ret,
    Treatment.INDIRECT_JUMP: Emitter.indirect_jump,
    Treatment.INDIRECT_CALL: Emitter.indirect_call,
}
