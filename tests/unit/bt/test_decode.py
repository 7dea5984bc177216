"""Instructions out of bytes, and memory operands rewritten: against Capstone's own reading of the result."""

import capstone
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt.decode import ADDRESS_SIZE, LOCK, OPERAND_SIZE, REPEAT, decode, decode_long, memory_operand, operand_registers
from bt.sensitive import TABLE, Treatment, classify, row_of

_capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
_capstone.detail = True
_GENERAL = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")


def one(code: str, address: int = 0x1000) -> capstone.CsInsn:
    return next(_capstone.disasm(bytes.fromhex(code), address, 1))


@pytest.mark.parametrize(
    ("code", "opcode", "modrm", "prefixes", "segment"),
    (
        ("90", 0x90, 0, 0, 0),
        ("668cc8", 0x8C, 0xC8, OPERAND_SIZE, 0),
        ("2ef3a5", 0xA5, 0, REPEAT, 0x2E),
        ("f0830001", 0x83, 0x00, LOCK, 0),
        ("0f20c0", 0x0F20, 0xC0, 0, 0),
        ("67 36 8b 07".replace(" ", ""), 0x8B, 0x07, ADDRESS_SIZE, 0x36),
        ("6664678b07", 0x8B, 0x07, OPERAND_SIZE | ADDRESS_SIZE, 0x64),
    ),
)
def test_an_instruction_s_parts(code: str, opcode: int, modrm: int, prefixes: int, segment: int) -> None:
    """Opcode, ModRM, prefixes and override, through any order of prefixes."""
    instruction = next(decode(bytes.fromhex(code) + bytes(16), 0x1000))
    assert (instruction.opcode, instruction.modrm, instruction.prefixes, instruction.segment) == (opcode, modrm, prefixes, segment)
    assert (instruction.address, instruction.next, instruction.raw.hex()) == (0x1000, 0x1000 + len(code) // 2, code)


@given(st.binary(min_size=40, max_size=80), st.sampled_from((0, 0x1000, 0xFFFFFFF0)))
def test_lengths_and_addresses_are_capstone_s(code: bytes, address: int) -> None:
    """Any bytes: the same instructions up to the first that is none, addresses wrapped at 4 GiB."""
    expected, at = [], 0
    while at < len(code):
        size = next((size for _, size, _, _ in _capstone.disasm_lite(code[at : at + 15], address, 1)), 0)
        if not size:
            break
        expected.append((address + at & 0xFFFFFFFF, code[at : at + size]))
        at += size
    assert [(instruction.address, instruction.raw) for instruction in decode(code, address)] == expected


@pytest.mark.parametrize(
    ("code", "target"),
    (
        ("ebfe", 0x1000),
        ("e9fbffffff", 0x1000),
        ("e800000100", 0x11005),
        ("74fe", 0x1000),
        ("0f8400000080", 0x80001006),
        ("e2fe", 0x1000),
        ("67e3fd", 0x1000),
        ("66e90010", 0x2004),
        ("66ebfd", 0x1000),
        ("660f840000", 0x1005),
    ),
)
def test_relative_targets(code: str, target: int) -> None:
    """8, 16 and 32 bits of displacement; an operand-size prefix keeps 16 bits of EIP."""
    assert next(decode(bytes.fromhex(code), 0x1000)).relative_target() == target


@given(st.integers(0, 0xBF), st.integers(0, 255), st.binary(min_size=4, max_size=4), st.integers(0, 0xFFFFFFFF), st.sampled_from((None, *range(8))))
def test_a_rewritten_operand_lies_just_as_much_further_on(modrm: int, sib: int, displacement: bytes, extra: int, reg: int | None) -> None:
    """Base, index and scale stay; the displacement grows by `extra`; the reg field is the one asked for."""
    raw = bytes((0x89, modrm, *([sib] if modrm & 7 == 4 else []))) + displacement
    instruction = next(decode(raw + displacement, 0))
    before, after = one(instruction.raw.hex()), one((b"\x89" + memory_operand(instruction, extra, reg)).hex())
    assert after.size == 1 + len(memory_operand(instruction, extra, reg))
    old, new = before.operands[0].mem, after.operands[0].mem
    assert (new.base, new.index, new.scale) == (old.base, old.index, old.scale)
    assert (new.disp - old.disp) & 0xFFFFFFFF == extra
    assert after.reg_name(after.operands[1].reg) == _GENERAL[modrm >> 3 & 7 if reg is None else reg]
    used = {before.reg_name(register) for register in (old.base, old.index) if register}
    assert {_GENERAL[n] for n in operand_registers(instruction)} >= used & set(_GENERAL)


def test_every_row_of_the_table_is_found_by_its_own_opcode() -> None:
    """No two rows claim the same encoding; names are unique."""
    assert len({row.opcode for row in TABLE}) == len(TABLE) == len({row.name for row in TABLE})


@pytest.mark.parametrize(
    ("opcode", "modrm", "name"),
    (
        (0x0F01, 0x00, "sgdt"),
        (0x0F01, 0xC1, "vmcall"),
        (0x0F01, 0xC2, "0f 01 /0 r"),
        (0x0F01, 0xD0, "xgetbv"),
        (0x0F01, 0xE0, "smsw"),
        (0x0F01, 0x38, "invlpg"),
        (0x0F01, 0xF8, "swapgs"),
        (0x0F01, 0xF9, "rdtscp"),
        (0x0F01, 0xFA, "0f 01 /7 r"),
        (0x0F20, 0xC0, "mov r,cr0"),
        (0x0F20, 0xC8, "mov r,cr"),
        (0x0F22, 0x23, "mov cr4,r"),
        (0x0F22, 0xC8, "mov cr,r"),
        (0x8C, 0xC8, "mov r/m,cs"),
        (0x8C, 0xD8, None),
        (0x8E, 0xD0, "mov ss,r/m"),
        (0x8E, 0xD8, "mov ds,r/m"),
        (0x8E, 0xF0, None),
        (0xFF, 0x10, "call r/m"),
        (0xFF, 0x18, "call far m"),
        (0xFF, 0xD8, None),
        (0xFF, 0x30, None),
        (0x89, 0xC8, None),
        (0x0F31, 0, None),
        (0x0FA2, 0, None),
    ),
)
def test_classes(opcode: int, modrm: int, name: str | None) -> None:
    """The reg field and the kind of operand choose among the forms of an opcode; what is copied has no row."""
    row = classify(opcode, modrm)
    assert (row.name if row else None) == name


def test_what_the_translator_copies_has_a_row_all_the_same() -> None:
    """The translator asks only for what it may not copy; whoever wants to know of every row finds them all."""
    assert row_of(0x0F31, 0) is next(row for row in TABLE if row.name == "rdtsc")
    assert row_of(0x0FA2, 0xC0) is next(row for row in TABLE if row.name == "cpuid")
    assert row_of(0x8C, 0xD8) is next(row for row in TABLE if row.name == "mov r/m,ds")
    assert row_of(0x89, 0xC8) is None
    classified = {classify(opcode, modrm) for opcode in (*range(256), *range(0x0F00, 0x1000)) for modrm in range(256)}
    for row in TABLE:
        assert (row in classified) == (row.treatment is not Treatment.NATIVE), row.name


@settings(max_examples=3000, deadline=None)
@given(st.binary(min_size=15, max_size=15))
def test_lengths_are_capstones(code: bytes) -> None:
    """The table of plain instructions and Capstone agree on where any instruction ends, and on what is none."""
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    expected = next((size for _, size, _, _ in engine.disasm_lite(code, 0x1000, 1)), None)
    found = next(decode(code, 0x1000), None)
    assert (found and len(found.raw)) == expected


@pytest.mark.parametrize(
    ("code", "opcode", "modrm", "rex", "sizes", "registers"),
    (
        ("0f22e0", 0x0F22, 0xE0, 0, (4, 8), (4, 0)),
        ("440f22c0", 0x0F22, 0xC0, 0x44, (4, 8), (8, 0)),
        ("410f20d9", 0x0F20, 0xD9, 0x41, (4, 8), (3, 9)),
        ("480f35", 0x0F35, 0, 0x48, (8, 8), (0, 0)),
        ("66480f0138", 0x0F01, 0x38, 0x48, (8, 8), (7, 0)),
        ("48660f0138", 0x0F01, 0x38, 0, (2, 8), (7, 0)),
        ("670f013d00010000", 0x0F01, 0x3D, 0, (4, 4), (7, 5)),
        ("65f30f05", 0x0F05, 0, 0, (4, 8), (0, 0)),
    ),
)
def test_64_bit_code(code: str, opcode: int, modrm: int, rex: int, sizes: tuple[int, int], registers: tuple[int, int]) -> None:
    """REX prefixes widen and extend where they stand last, and nowhere else; what follows is not part of the instruction."""
    raw = bytes.fromhex(code)
    found = decode_long(raw + b"\xf4" * 4, 0xFFFF_FFFF_FFFF_FFF8)
    assert found is not None
    assert (found.opcode, found.modrm, found.rex) == (opcode, modrm, rex)
    assert (found.operand_size, found.address_size) == sizes
    assert (found.reg, found.rm) == registers
    assert found.next == 0xFFFF_FFFF_FFFF_FFF8 + len(found.raw) & (1 << 64) - 1


@given(st.binary(min_size=15, max_size=15), st.integers(0, 0xFFFFFF00), st.booleans())
def test_texts_are_capstones_at_every_address(code: bytes, address: int, wide: bool) -> None:
    """What an instruction is called depends on where it stands if it is relative, though most texts are kept for the next one with the same bytes."""
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32 if wide else capstone.CS_MODE_16)
    for start in (0x1000, address):
        for instruction in decode(code, start, wide):
            expected = next(engine.disasm(instruction.raw, instruction.address, 1))
            assert instruction.text == f"{expected.mnemonic} {expected.op_str}".strip()


@pytest.mark.parametrize("code", ("ebfe", "e800000000", "0f8400000000", "e2fe", "7510", "c7f800000000", "67e300"))
def test_relative_texts_differ(code: str) -> None:
    """The same bytes at two addresses."""
    texts = {next(decode(bytes.fromhex(code), address)).text for address in (0x1000, 0x2000)}
    assert len(texts) == 2
