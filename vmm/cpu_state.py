"""Where the CPU keeps its state: the layout of the engine's live state, and how it is found and checked at start-up.

Knows the order of the fields in the CPU's state (QEMU 5.0's CPUX86State) and how to find them in the memory of this
process by writing magic values. Refuses an ambiguous result. Knows nothing of guests; imports no engine: it is given one.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable


class LayoutError(Exception):
    """The CPU's state was not found, or not where one thing can be meant by it: the message says what is missing."""


class Cpu:
    """Indices of 32-bit words in `Machine.state`. Registers of 64 bits take two words; the upper ones stay zero in 32-bit guests."""

    EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI = 0, 2, 4, 6, 8, 10, 12, 14
    EIP = 32
    EFLAGS = 34
    CC_SRC = 38
    CC_OP = 42
    DF = 43  # 1 or -1
    HFLAGS = 44  # the CPL and all else that decoding depends on
    HFLAGS2 = 45
    ES, CS, SS, DS, FS, GS, LDT, TR, GDT, IDT = range(46, 106, 6)
    BASE, LIMIT, ATTRIBUTES = 2, 4, 5  # of a segment, from its selector's index
    CR0, CR2, CR3, CR4 = 106, 110, 112, 114


GENERAL = (Cpu.EAX, Cpu.ECX, Cpu.EDX, Cpu.EBX, Cpu.ESP, Cpu.EBP, Cpu.ESI, Cpu.EDI)  # in the order of their encoding

_VENDOR = b"AuthenticAMD"  # of the CPU model EPYC
_BEHIND_STATE = 512  # bytes
_SURE_FEATURES = {0: 0x0780A979, 1: 1, 2: 1 << 7, 6: 1 << 29 | 1 << 20, 7: 1 << 2}  # FPU to SSE2; SSE3; SMEP; LM NX; SVM
_SCAN = 64 * 1024  # bytes behind a pointer in which the state is looked for


def find_live_state(engine: int, size: int, write_general: Callable[[int, int], None], write_debug: Callable[[int, int], None]) -> tuple[int, int]:
    """Finds the live state, `size` bytes, of the CPU of the engine at address `engine`.

    write_general(n, value) and write_debug(n, value) write 64-bit general register n and debug register n by the engine's
    own interface. Returns the state's address and the index of debug register 0. Raises LayoutError unless exactly one
    place follows what is written.
    """
    with open("/proc/self/mem", "rb", buffering=0) as process:
        candidates: set[int] | None = None
        for round_ in range(2):  # a copy of the first pattern that lies about does not follow the second one
            for n in range(8):
                write_general(n, _general_magic(round_, n))
            pattern = struct.pack("<8Q", *(_general_magic(round_, n) for n in range(8)))
            if candidates is None:
                candidates = _behind_pointers(process.fileno(), engine, pattern)
            else:
                candidates = {at for at in candidates if os.pread(process.fileno(), len(pattern), at) == pattern}
        assert candidates is not None
        if len(candidates) != 1:
            raise LayoutError(f"the CPU's live state: {len(candidates)} candidates")
        address = candidates.pop()
        debug = [0x0BAD_0000_0000_1000 + n for n in range(4)]
        for n, value in enumerate(debug):
            write_debug(n, value)
        image = os.pread(process.fileno(), size, address)
    places = _occurrences(image, struct.pack("<4Q", *debug))
    if len(places) != 1 or places[0] % 8:
        raise LayoutError(f"the debug registers in the CPU's state: {len(places)} candidates")
    for n in range(8):
        write_general(n, 0)
    for n in range(4):
        write_debug(n, 0)
    return address, places[0] // 4


def _general_magic(round_: int, n: int) -> int:
    return 0x5A17_0000_1234_0001 + (round_ << 40) + (n << 20)


def find_exit_check_flag(engine: int, state_size: int) -> int | None:
    """Address of the engine's private `no_exit_request` byte, found by the values around it; None when not found once.

    Erratum 3: set before any code is compiled, it leaves the check for a stop only at the start of a block.
    state_size is the size in bytes of a saved context without its header.
    """
    image = ctypes.string_at(engine, 6000)
    found = []
    for at in _occurrences(image, struct.pack("<i", state_size)):
        bools = ((at + 4 + 7) & ~7) + 8  # behind the aligned 64-bit next_pc: hook_insert, first_tb, no_exit_request, init_done
        if image[at - 4 : at] == b"\1\0\0\0" and image[bools] == 0 and image[bools + 2] == 0 and image[bools + 3] == 1:
            found.append(engine + bools + 2)
    return found[0] if len(found) == 1 else None


def find_interrupt_request(state: int, pending: int = 0) -> tuple[list[ctypes.c_uint32], ctypes.c_uint16]:
    """What may be the word of pending requests of the CPU whose live state is at `state`; the half-word that, set to FFFFh, ends a chain of blocks.

    pending: what the word holds now. Both stand in front of the state: a pointer to the state, and one to the half-word's pair close to the
    state, follow the requests, with a jump buffer of any contents between. Raises LayoutError when no place looks so. Freed memory before
    them may look so too: each is to be tried, the nearest first.
    """
    image = ctypes.string_at(state - _SCAN, _SCAN)
    places = [at for at in _occurrences(image, struct.pack("<Q", state)) if at % 8 == state % 8 and 0 < state - _quad(image, at + 8) < 256]
    if len(places) != 1:
        raise LayoutError(f"the pointer to the CPU's state: {len(places)} candidates")
    (pointer,) = places
    # cflags_next_tb is -1 between blocks; singlestep_enabled and icount_budget behind interrupt_request are 0.
    wanted = b"\xff" * 4 + struct.pack("<I", pending) + bytes(16)
    marks = [at for at in range(pointer - 8, pointer - 513, -8) if image[at : at + 24] == wanted]
    if not marks:
        raise LayoutError("the CPU's pending requests: no candidate")
    requests = [ctypes.c_uint32.from_address(state - _SCAN + mark + 4) for mark in marks]
    return requests, ctypes.c_uint16.from_address(_quad(image, pointer + 8) + 2)


def find_instruction_counter(engine: int, begun: int, limit: int) -> tuple[ctypes.c_uint64, ctypes.c_uint64]:
    """The engine's words with the number of instructions begun in the present run and with that after which it ends, found by their values.

    Raises LayoutError unless exactly one place looks so.
    """
    places = _occurrences(ctypes.string_at(engine, 6000), struct.pack("<2Q", begun, limit))
    if len(places) != 1:
        raise LayoutError(f"the engine's count of instructions: {len(places)} candidates")
    return ctypes.c_uint64.from_address(engine + places[0]), ctypes.c_uint64.from_address(engine + places[0] + 8)


def _quad(image: bytes, at: int) -> int:
    value: int = struct.unpack_from("<Q", image, at)[0]
    return value


class Feature:
    """Indices of the engine's feature words: CPUID leaf and register."""

    LEAF_1_EDX, LEAF_1_ECX, LEAF_7_EBX, LEAF_80000001_EDX, LEAF_80000001_ECX = 0, 1, 2, 6, 7


def find_features(address: int, size: int) -> int | None:
    """Address of the eight feature words (64 bits each) by which the engine decides which instructions there are; None when not found once.

    They stand close behind the state of `size` bytes at `address`, behind the vendor's name and the signature.
    """
    image = ctypes.string_at(address + size, _BEHIND_STATE)
    found = []
    for at in _occurrences(image, _VENDOR):
        words = struct.unpack("<8Q", image[at + 16 : at + 80])
        if all(words[word] & bits == bits for word, bits in _SURE_FEATURES.items()) and max(words) < 1 << 32:
            found.append(address + size + at + 16)
    return found[0] if len(found) == 1 else None


def _behind_pointers(process: int, engine: int, pattern: bytes) -> set[int]:
    """Addresses of `pattern` in the memory behind every pointer that the engine's structure holds."""
    found: set[int] = set()
    words = struct.unpack("<750Q", os.pread(process, 6000, engine))
    for pointer in {word for word in words if 0x10000 < word < 1 << 47 and word % 8 == 0}:
        try:
            image = os.pread(process, _SCAN, pointer)
        except OSError:
            continue
        found.update(pointer + at for at in _occurrences(image, pattern))
    return found


def _occurrences(image: bytes, pattern: bytes) -> list[int]:
    found, at = [], -1
    while (at := image.find(pattern, at + 1)) >= 0:
        found.append(at)
    return found
