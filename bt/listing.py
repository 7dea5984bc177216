"""A block and its translation side by side, as text for people.

Knows the map that leads from translated code back to guest instructions, and the names of the window's words. Knows nothing
of where a translation came from; changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bt.block import ADJUSTED, MIDWAY, RETURNING, SHADOWED, SPILLED, Site, SiteKind, Translation
from bt.decode import Instruction, decode
from bt.window import CODE, DOORBELL, FLAGS_CLASS, LOADABLE, RETURNS, RETURNS_SIZE, RING_3, SAME_CODE, SLOTS, WORD_BY_NAME

REGISTERS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_WINDOW_OPERAND = re.compile(r"(ss:\[(?:[^]]*? ([+-]) )?)(0x[0-9a-f]+)\]")
_GUEST_WIDTH, _CODE_WIDTH = 74, 80
_TRAP_SIZE = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """One instruction of translated code. entries: the map entries that begin at it, as (index in the map, guest EIP, recovery flags)."""

    code: Instruction
    entries: list[tuple[int, int, int]]


def pieces(translation: Translation) -> Iterator[Piece]:
    """The translated code, decoded, with what the map says of it; bytes that are no instruction stand for themselves."""
    at, marks = 0, translation.marks
    for code in _instructions(translation):
        entries = []
        while at < len(marks) and marks[at] <= code.address:
            entries.append((at, translation.guests[at], translation.recovery[at]))
            at += 1
        yield Piece(code, entries)


def listing(translation: Translation, base: int) -> str:
    """The guest's instructions on the left, each beside the code made of it; what that code needs to be undone in the last column.

    base: the window's linear address. One line ends each row; trailing blanks are cut off.
    """
    guests = {instruction.address: instruction for instruction in translation.block.instructions}
    rows: list[str] = []
    shown = -1
    for piece in pieces(translation):
        left, code = "", piece.code
        notes: list[str] = []
        for at, guest, recovery in piece.entries:
            if at == translation.body:
                rows.append(_row("-- stubs", ""))
            if guest != shown and at < translation.body:
                if left:  # nothing was made of the instruction before
                    rows.append(_row(left, ""))
                left, notes, shown = _guest(guest, guests), [], guest
            notes.append(recovery_words(recovery))
        notes.append(_place(translation, code))
        text = f"{code.address:08x}  {code.raw.hex(' '):<30} {named(code.text, translation, base)}"
        rows.append(_row(left, text, ", ".join(note for note in notes if note)))
    return "\n".join(rows) + "\n"


def _instructions(translation: Translation) -> list[Instruction]:
    found: list[Instruction] = []
    code, start, at = translation.code, translation.start, 0
    while at < len(code):
        found += decode(code[at:], start + at, translation.mode.wide)
        at = found[-1].next - start if found else 0
        if at < len(code):
            found.append(Instruction(start + at, start + at + 1, code[at : at + 1], code[at], 1, 0, 0, 0))
            at += 1
    return found


def _row(guest: str, code: str, note: str = "") -> str:
    return f"{guest:<{_GUEST_WIDTH}}| {code:<{_CODE_WIDTH}}{' ; ' + note if note else ''}".rstrip()


def _guest(address: int, guests: dict[int, Instruction]) -> str:
    instruction = guests.get(address)
    if instruction is None:
        return f"{address:08x}  (no instruction)"
    return f"{address:08x}  {instruction.raw.hex(' '):<22}  {instruction.text}"


def recovery_words(flags: int) -> str:
    """What a map entry's recovery flags say, in a few words; nothing for a clean place."""
    if flags & ADJUSTED:
        return f"{REGISTERS[flags & 7]} adjusted"
    if flags & SPILLED:
        return f"{REGISTERS[flags & 7]} spilled"
    return {MIDWAY: "midway", SHADOWED: "no interrupt here", RETURNING: "flags changed"}.get(flags, "")


def _place(translation: Translation, code: Instruction) -> str:
    """What is special about the place: a checked entry, or a trap and its site."""
    for guest, (address, _) in translation.returns.items():
        if address == code.address:
            return f"checked entry of {guest:08x}"
    site = translation.sites.get(code.next)
    return _trap(site) if site is not None and len(code.raw) == _TRAP_SIZE else ""


def _trap(site: Site) -> str:
    match site.kind:
        case SiteKind.CALLOUT:
            return f"callout: {site.row.name if site.row else ''}"
        case SiteKind.CHAIN:
            return f"chain to {site.target:08x}"
        case SiteKind.STEPPED:
            return f"stepped to {site.target:08x}"
        case SiteKind.ALONE:
            return "to run alone"
        case SiteKind.OVERDRAWN:
            return "beyond the budget"
        case SiteKind.UNDEFINED:
            return "no instruction"
        case SiteKind.PROTECTED:
            return "a store through cs"
        case SiteKind.MISS:
            return "unknown target"


def named(text: str, translation: Translation, base: int) -> str:
    """The text of an instruction with the window's words by their names."""

    def name(found: re.Match[str]) -> str:
        value = int(found[3], 16) * (-1 if found[2] == "-" else 1)
        offset = value - (base - translation.mode.ss_base) & 0xFFFFFFFF
        if offset >= CODE:
            return found[0]
        before = found[1][:-2] + "+ " if found[2] else found[1]
        return f"{before}{word_name(offset, translation)}]"

    return _WINDOW_OPERAND.sub(name, text)


def word_name(offset: int, translation: Translation) -> str:
    """The name of a place in the window's data."""
    if offset >= LOADABLE:
        return "loadable?"
    if offset >= SAME_CODE:
        return "same code?"
    if offset >= SLOTS:
        slots = translation.slots.get(offset)
        number = (offset - SLOTS) // 4
        if offset in translation.counters.values():
            return f"counter {number}"
        return f"slot {number} to {slots[0]:08x}" if slots else f"slot {number}"
    if offset >= RETURNS:
        return f"returns of mode {(offset - RETURNS) // RETURNS_SIZE}"
    if offset >= RING_3:
        return "ring 3?"
    if offset >= FLAGS_CLASS:
        return "flags class"
    if offset >= DOORBELL:
        return f"doorbell {word_name(offset - DOORBELL, translation)}"
    if offset < 0x20:
        return f"saved {REGISTERS[offset // 4]}"
    name, start = max(((name, start) for name, start in WORD_BY_NAME.items() if start <= offset), key=lambda item: item[1])
    return name if start == offset else f"{name}+{offset - start}"
