"""What each instruction of translated code is there for, in words.

Knows the emitter's templates by the bytes that they begin with, and the window's layout. Knows nothing of what a translation is
made of or how it runs; what it does not know it says nothing about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bt.block import SPILLED, Site, SiteKind, Translation
from bt.decode import Instruction
from bt.emit import TRAP
from bt.listing import REGISTERS
from bt.sensitive import ADAPTED, Row, Treatment
from bt.window import CODE, DOORBELL, FLAGS_CLASS, LOADABLE, RING_3, SAME_CODE, SLOTS, WORD_BY_NAME, Word

_IF = Word.FLAGS + 1
_NAMES = {
    "TARGET": "the target",
    "FLAGS": "the virtual IF and IOPL",
    "FLAGS_BEFORE": "the virtual IF as it was",
    "LDT": "virtual LDTR",
    "TR": "virtual TR",
    "GDT_LIMIT": "the virtual GDT's limit",
    "GDT_BASE": "the virtual GDT's base",
    "IDT_LIMIT": "the virtual IDT's limit",
    "IDT_BASE": "the virtual IDT's base",
}
_FIXED: tuple[tuple[bytes, str], ...] = (
    # what an instruction of a template begins with, and what it is there for
    (b"\x9c", "push the CPU's flags: IF set, IOPL 0"),
    (b"\x9d", "the CPU takes the other flags; it ignores IF and IOPL"),
    (b"\xcf", "the CPU's own return, to user mode"),
    (b"\x59", "pop the return address"),
    (b"\x8b\x0c\x24", "look at the top of the stack: a fault comes here"),
    (b"\x89\x0c\x24", "put the merged flags there"),
    (b"\x8d\x8c\x11", "merge the virtual IF and IOPL into the flags"),
    (b"\x8b\x4c\x24\x08", "all of the frame can be read: a fault comes here"),
    (b"\xf7\xd2", "less one, its negative"),
    (b"\x8d\x4c\x11\x01", "0 when they are the same"),
    (b"\x8d\x64\x24\x04", "past CS, to the flags"),
    (b"\x0f\xb7\x4c\x24\x04", "the CS to return to"),
    (b"\x0f\xb7\x4c\x24", "bits 8 to 23 of the flags to be loaded"),
    (b"\x0f\xb6\x4c\x24", "the CS to return to"),
    (b"\x8d\x49\xfe", "0 when IF is to be set"),
    (b"\x8d\x49\x01", "one more time that this run was entered"),
    (b"\x0f\xb7\xc9", "its low 16 bits choose an entry of the table"),
    (b"\xe3", "when it is 0: go round"),
    (b"\xeb", "over the next"),
)
_TABLES = {
    FLAGS_CLASS: "their class: 0 for the VMM, 1 with IF clear, 2 with IF set",
    RING_3: "1 when it is of ring 3",
    LOADABLE: "1 when the CPU may load it",
    SAME_CODE: "1 when it would load what CS has, if it is the same",
}
_BY_TREATMENT = {
    Treatment.READ_WORD: "store it in the guest's operand",
    Treatment.READ_TABLE: "store it in the guest's operand",
    Treatment.INDIRECT_JUMP: "read where it goes",
    Treatment.INDIRECT_CALL: "read where it goes",
    Treatment.RETURN: "take the arguments off the stack",
    Treatment.LOAD_SEGMENT: "the selector; the VMM found that the CPU may load it",
    Treatment.LOOP: "the guest's own test, over a jump over a jump",
}


@dataclass(frozen=True, slots=True)
class Explainer:
    """Explains one translation. base: the window's linear address. name: a guest EIP as a person wants to read it. leads: whether
    the slot at a window offset leads to a translation (a chained jump)."""

    translation: Translation
    base: int
    name: Callable[[int], str]
    leads: Callable[[int], bool]

    def words(self, code: Instruction, row: Row | None, guest: Instruction | None) -> str:
        """What an instruction of the translation is for; nothing when it is the guest's own, or when there is nothing to say.

        row, guest: the instruction of the guest that it belongs to, None for a place without one.
        """
        raw = code.raw
        if raw == TRAP and (site := self.translation.sites.get(code.next)) is not None:
            return self._trap(site)
        if guest is not None and row is None and raw == guest.raw:
            return ""
        if raw[:1] == b"\x66" and raw[1:2] == b"\x36":
            raw = raw[1:]
        return self._window(raw) or self._flow(raw, code) or self._fixed(raw, row)

    def _trap(self, site: Site) -> str:
        match site.kind:
            case SiteKind.CALLOUT if site.row is ADAPTED:
                return "trap: the VMM makes this access, which kept faulting"
            case SiteKind.CALLOUT:
                return f"trap: the VMM emulates {site.row.name if site.row else 'the instruction'}"
            case SiteKind.CHAIN:
                return f"trap, until slot {(site.slot - SLOTS) // 4} is chained: the VMM finds {self.name(site.target)}"
            case SiteKind.STEPPED:
                return f"trap: the step is done, the guest goes on at {self.name(site.target)}"
            case SiteKind.ALONE:
                return "trap: the VMM lets this instruction run by itself"
            case SiteKind.OVERDRAWN:
                return "trap: something is due within these instructions, the VMM steps to it"
            case SiteKind.UNDEFINED:
                return "trap: #UD, these bytes are no instruction"
            case SiteKind.PROTECTED:
                return "trap: #GP, nothing is stored through CS"
            case SiteKind.MISS:
                return "trap: the VMM finds what no entry of the table knew"

    def _window(self, raw: bytes) -> str:
        """Accesses to the window's words through SS."""
        if raw[:1] != b"\x36":
            return ""
        kind, register = raw[1:3], REGISTERS[raw[2] >> 3 & 7] if len(raw) > 2 else ""
        if kind == b"\xff\x25":
            return self._slot(self._offset(raw[3:7]))
        if kind == b"\xff\x35":
            return f"push {self._word(self._offset(raw[3:7]))}"
        if kind == b"\xff\x24":
            return "jump to the checked entry that stands there"
        if raw[1:4] == b"\x0f\xb6\x89":
            offset = self._offset(raw[4:8])
            return _TABLES.get(offset, "")
        if kind == b"\xc6\x05":
            return self._flag(self._offset(raw[3:7]), raw[7])
        offset = self._offset(raw[3:7])
        if offset >= CODE or raw[2] & 0xC7 != 5:
            return ""
        if raw[1] in (0x8A, 0x88):
            return "keep the virtual IF, in case the CPU's iret faults"
        if raw[1] not in (0x8B, 0x89):
            return ""
        store = raw[1] == 0x89
        if offset < Word.TARGET:
            return f"save {register}" if store else f"take {register} back"
        if offset in self.translation.counters.values():
            return "count" if store else f"counter {(offset - SLOTS) // 4}"
        word = self._word(offset)
        return f"{register} becomes {word}" if store else f"{word}, into {register}"

    def _offset(self, displacement: bytes) -> int:
        return int.from_bytes(displacement, "little") - (self.base - self.translation.mode.ss_base) & 0xFFFFFFFF

    def _word(self, offset: int) -> str:
        name = next((name for name, at in WORD_BY_NAME.items() if at == offset), "")
        return _NAMES.get(name, f"virtual {name}" if name else "a word of the VMM's")

    def _flag(self, offset: int, value: int) -> str:
        if offset == _IF and not value:
            return "clear virtual IF"
        return "set virtual IF; traps when an interrupt waits" if offset == DOORBELL + _IF else ""

    def _slot(self, slot: int) -> str:
        leads_to = self.translation.slots.get(slot)
        if leads_to is None:
            return "it is not: on to the next of this table entry" if SLOTS <= slot < CODE else ""
        chained = "chained" if self.leads(slot) else "not chained"
        return f"jump through slot {(slot - SLOTS) // 4} to {self.name(leads_to[0])} ({chained})"

    def _flow(self, raw: bytes, code: Instruction) -> str:
        if raw[0] == 0x68:
            return f"push the return address {self.name(int.from_bytes(raw[1:5], 'little'))}"
        if raw[:2] == b"\x8d\x89":
            guest = -int.from_bytes(raw[2:6], "little") & 0xFFFFFFFF
            return f"0 when the target is {self.name(guest)}" if guest in self.translation.returns else ""
        if raw[0] != 0xE9 and not (raw[0] == 0x0F and raw[1] & 0xF0 == 0x80):
            return ""
        translation, target = self.translation, code.relative_target()
        guest, recovery, exact = translation.locate(target)
        stubs = translation.marks[translation.body] if translation.body < len(translation.marks) else translation.end
        if recovery & SPILLED and target >= stubs:
            return "to the VMM, below"
        if code.address >= stubs and not (exact and guest in translation.guests[: translation.body]):
            return "on behind it"
        return f"{'on' if raw[0] == 0xE9 else 'if so,'} to {self.name(guest)}"

    def _fixed(self, raw: bytes, row: Row | None) -> str:
        for beginning, words in _FIXED:
            if raw.startswith(beginning):
                return words
        if row is None:
            return "the guest's own, through SS and moved by the difference of the bases"
        return _BY_TREATMENT.get(row.treatment, "")


