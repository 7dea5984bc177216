"""Assembly text in, machine code out: Keystone, with the one setting under which its answers repeat.

Knows Keystone's ways. Knows no guest.
"""

from __future__ import annotations

import re

import keystone

ENTRY = 0x100000  # where the tests' guests begin

# Keystone never initializes the radix of plain numbers: after an unlucky allocation "20" is read as 20h. So it is set, to the
# only value that can be, and plain numbers are written in hexadecimal. The index of st(1) is no number to Keystone.
_MODES = {16: keystone.KS_MODE_16, 32: keystone.KS_MODE_32, 64: keystone.KS_MODE_64}
_keystones = {bits: keystone.Ks(keystone.KS_ARCH_X86, mode) for bits, mode in _MODES.items()}
for _engine in _keystones.values():
    _engine.syntax = keystone.KS_OPT_SYNTAX_INTEL | keystone.KS_OPT_SYNTAX_RADIX16
_DECIMAL = re.compile(r"(?<![\w.'])(?<!st\()\d+(?![\w'])")


def assemble(source: str, at: int = ENTRY, *, wide: bool = True) -> bytes:
    """Machine code of 32-bit (or not `wide`, 16-bit) Intel-syntax `source` (statements apart by `;` or new lines) that stands at `at`."""
    return _assemble(source, at, 32 if wide else 16)


def assemble_long(source: str, at: int = ENTRY) -> bytes:
    """The same for 64-bit code. But a load from an absolute address has to be one of RAX: Keystone gets the others wrong."""
    return _assemble(source, at, 64)


def _assemble(source: str, at: int, bits: int) -> bytes:
    lines = "; ".join(line.strip().rstrip(";") for line in source.splitlines() if line.strip())
    try:
        code, _ = _keystones[bits].asm(_DECIMAL.sub(lambda number: hex(int(number[0])), lines), at)
    except keystone.KsError as error:
        raise AssertionError(f"{source!r}: {error}") from error
    return bytes(code or b"")
