"""Where a block ends: which instructions are translated together.

A block follows the code past conditional branches and calls, goes on at the targets of jumps and branches that lie in the
same page, and ends where control leaves it or enough has been taken. Knows the table; knows no memory: it is given the bytes.
"""

from __future__ import annotations

from bt.block import Block, Mode
from bt.decode import Instruction, decode
from bt.sensitive import Row, Treatment, translated

LIMIT = 64  # instructions in a block; more would translate what is never run
LONGEST = 15  # bytes of an instruction

_ENDS = ("call far", "call far m", "jmp far", "jmp far m", "ret far", "ret far n", "sysenter", "sysexit")
_UD2 = 0x0F0B
_KERNEL = Mode(0, 0, 0)
_FOLLOWED = (Treatment.BRANCH, Treatment.LOOP)


def discover(code: bytes, start: int, span: int, entry: int, limit: int = LIMIT, mode: Mode = _KERNEL, *, timed: bool = False) -> Block:
    """The block that is entered at EIP `entry`.

    code: the bytes from EIP `start` on: `span` bytes of the page, then those of the next page that an instruction reaching
    over the end may need (none when that page cannot be fetched). An instruction that needs more is left out: the block
    ends before it, and is empty when it is the first. mode: a careful one makes the block a run that ends with the first
    instruction in the table. timed: what shows the time or reaches a device has its row.
    """
    instructions: list[Instruction] = []
    rows: list[Row | None] = []
    undecodable: list[int] = []
    taken: set[int] = set()
    found, found_row, take = instructions.append, rows.append, taken.add
    careful, wide, table = mode.careful, mode.wide, translated(mode.careful or mode.cpl != 0, timed)
    pending, end, left = [entry], start + span, limit
    for address in pending:
        while address is not None and left:
            following: int | None = None
            for instruction in decode(code[address - start :], address, wide):
                eip = instruction.address
                if eip in taken or eip >= end or not left:
                    break
                left -= 1
                take(eip)
                found(instruction)
                forms = table.get(instruction.opcode)
                row = None if forms is None else forms[instruction.modrm]
                found_row(row)
                if row is None:
                    if instruction.opcode == _UD2:
                        break
                    continue
                if careful:
                    break
                if row.treatment is Treatment.JUMP:
                    target = instruction.relative_target()
                    following = target if 0 <= target - start < span and target not in taken else None
                    break
                if row.treatment in _FOLLOWED:
                    target = instruction.relative_target()
                    if 0 <= target - start < span:
                        pending.append(target)
                elif row.treatment in (Treatment.RETURN, Treatment.INDIRECT_JUMP, Treatment.RETURN_FROM_INTERRUPT) or row.name in _ENDS:
                    break
            else:  # nothing more could be decoded
                at = instructions[-1].next if address in taken else address
                if at not in taken and 0 <= at - start < span and len(code) - (at - start) >= LONGEST:
                    undecodable.append(at)
            if following is None:
                break
            address = following
        if not left:
            break
    return Block(entry, instructions, rows, undecodable)
