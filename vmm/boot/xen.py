"""Building a Xen PV domain: a kernel's file in; memory, page tables and the start info page out.

Knows the order in which a domain builder lays out a guest's memory, and the layout of the start info page (Xen's public headers, xen.h). Page
tables hold machine frames: which frame stands behind which page is given. Runs nothing and types no frame.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vmm.boot import elf
from vmm.boot.image import mib, read_file, read_image
from vmm.boot.symbols import Range, Symbols
from vmm.boot.xen_notes import VMM_START, XenNotes, has_xen_notes, read_xen_notes
from vmm.bus import Memory
from vmm.errors import InputError
from vmm.start import CONSOLE_PORT, STORE_PORT, Domain, Start

__all__ = ["has_xen_notes", "load_domain"]

PAGE: Final = 0x1000
MAGIC: Final = b"xen-3.0-x86_32p"
_ALIGN, _SPARE = 4 << 20, 512 << 10  # the first mapping ends on a multiple of 4 MiB, with so much room behind what is used
_COMMAND_LINE: Final = 1024
_TABLE, _LEAF, _READ_ONLY, _PRESENT = 0x67, 0x63, 0x61, 0x01  # P W U A D; P W A D; P A D; P
_ROW: Final = struct.Struct("<4I")  # of a table of modules (Multiboot 0.6.96, 3.3)
_LAST_REGION = 3  # the top-level entry whose directory has the VMM's own mappings: every domain needs one


@dataclass(slots=True)
class _Plan:
    """Where everything goes, in pages from the start of the guest's memory."""

    module: int = 0
    p2m: int = 0
    start_info: int = 0
    store: int = 0
    console: int = 0
    tables: int = 0
    table_count: int = 0
    stack: int = 0
    mapped: int = 0  # pages in the first mapping


def load_domain(
    path: str, memory: Memory, frames: Sequence[int], shared_info: int, *, append: str = "", modules: Sequence[str] = (), initrd: str | None = None
) -> Start:
    """Builds a domain of the kernel `path` in `memory`, page n of which is machine frame frames[n].

    shared_info: machine address of the shared info page. initrd: the one module that the ABI knows. modules: several in it, behind a table as
    multiboot has it, which is how GNU Mach wants them. Raises InputError, and then nothing is written.
    """
    image = read_image(path, memory.size)
    _check_bits(path, image)
    parsed = elf.parse(path, image)
    notes = read_xen_notes(path, image)
    module, arguments = _module(path, modules, initrd, memory.size)
    command_line = " ".join(filter(None, (append, arguments))).encode("utf-8", "surrogateescape")
    if len(command_line) >= _COMMAND_LINE or b"\0" in command_line:
        raise InputError(f"--append: longer than the {_COMMAND_LINE - 1} bytes that the start info page has room for, or with a NUL in it")
    pieces, kernel_end = _kernel(path, parsed, image, notes, memory.size)
    entry = parsed.entry if notes.entry is None else notes.entry
    if not 0 <= entry - notes.virt_base < kernel_end:
        raise InputError(f"{path}: bad Xen note: the entry {entry:#x} lies outside the kernel")
    plan = _plan(path, kernel_end, len(module), memory.size, notes.virt_base)
    for gpa, data, size in pieces:
        memory.write(gpa, data + bytes(size - len(data)))
    memory.write(plan.module * PAGE, module)
    memory.write(plan.p2m * PAGE, struct.pack(f"<{len(frames)}I", *frames))
    directories = _write_tables(memory, frames, plan, notes.virt_base)
    _write_start_info(memory, frames, plan, notes.virt_base, shared_info, len(module), command_line)
    domain = Domain(
        virt_base=notes.virt_base,
        top=plan.tables,
        tables=range(plan.tables, plan.tables + plan.table_count),
        directories=directories,
        hypercall_page=None if notes.hypercall_page is None else notes.hypercall_page - notes.virt_base >> 12,
        store=plan.store,
        console=plan.console,
    )
    ranges = [Range(segment.vaddr, segment.paddr - notes.paddr_offset, segment.memsz) for segment in parsed.segments]
    return Start(
        entry=entry,
        kind="xen",
        symbols=Symbols(path, *elf.symbol_table(parsed, image), ranges),
        gdt_base=0,
        esi=notes.virt_base + plan.start_info * PAGE,
        esp=notes.virt_base + (plan.stack + 1) * PAGE,
        domain=domain,
    )


def _check_bits(path: str, image: bytes) -> None:
    if elf.is_elf(image) and len(image) > 4 and image[4] == 2:
        raise InputError(f"{path}: 64-bit kernel: --backend pv runs 32-bit PAE Xen kernels")
    if not elf.is_elf(image):
        raise InputError(f"{path}: not an ELF file: --backend pv runs 32-bit PAE Xen kernels")


def _module(path: str, modules: Sequence[str], initrd: str | None, memory_size: int) -> tuple[bytes, str]:
    """The domain's module, and what of the words beside it belongs on the kernel's command line."""
    if initrd is not None and modules:
        raise InputError(f"{path}: a Xen domain takes either --initrd or --module")
    beyond = f"module is larger than the guest's memory ({mib(memory_size)})"
    if initrd is not None:
        file, _, arguments = initrd.partition(" ")
        return read_file(file, memory_size, beyond), arguments
    if not modules:
        return b"", ""
    files = []
    for text in modules:
        file = text.partition(" ")[0]
        if not file or "\0" in text:
            raise InputError(f"--module {text!r}: names no file")
        files.append((read_file(file, memory_size, beyond), text.encode("utf-8", "surrogateescape") + b"\0"))
    return _module_table(files), ""


def _module_table(files: Sequence[tuple[bytes, bytes]]) -> bytes:
    """{start, end, text, 0} for each module and zeroes behind the last, counted from the table's own start; each module on a page of its own."""
    table, texts = b"", b""
    at = (len(files) + 1) * _ROW.size
    start = -(-(at + sum(len(text) for _, text in files)) // PAGE) * PAGE
    contents = b""
    for data, text in files:
        table += _ROW.pack(start + len(contents), start + len(contents) + len(data), at + len(texts), 0)
        texts += text
        contents += data.ljust(-(-len(data) // PAGE) * PAGE, b"\0")
    return (table + bytes(_ROW.size) + texts).ljust(start, b"\0") + contents


def _kernel(path: str, parsed: elf.Elf, image: bytes, notes: XenNotes, memory_size: int) -> tuple[list[tuple[int, bytes, int]], int]:
    """The segments as (address from the start of the guest's memory, bytes, size), and the end of the last."""
    pieces, total = [], 0
    for segment in parsed.segments:
        gpa = segment.paddr - notes.paddr_offset
        total += segment.memsz
        if gpa < 0 or gpa + segment.memsz > memory_size or total > memory_size:
            what = f"the segment at {segment.paddr:#x} ({segment.memsz} bytes)"
            raise InputError(f"{path}: {what} lies outside the guest's memory ({mib(memory_size)})")
        pieces.append((gpa, image[segment.offset : segment.offset + segment.filesz], segment.memsz))
    end = max(gpa + size for gpa, _, size in pieces)
    if notes.hypercall_page is not None and notes.hypercall_page - notes.virt_base + PAGE > -(-end // PAGE) * PAGE:
        raise InputError(f"{path}: bad Xen note: the hypercall page {notes.hypercall_page:#x} lies outside the kernel")
    return pieces, end


def _plan(path: str, kernel_end: int, module_size: int, memory_size: int, virt_base: int) -> _Plan:
    plan = _Plan(module=-(-kernel_end // PAGE))
    plan.p2m = plan.module + -(-module_size // PAGE)
    plan.start_info = plan.p2m + -(-(memory_size // PAGE * 4) // PAGE)
    plan.store, plan.console, plan.tables = plan.start_info + 1, plan.start_info + 2, plan.start_info + 3
    while True:  # page tables map themselves: more of them may need one more
        plan.stack = plan.tables + plan.table_count
        end = -(-(virt_base + (plan.stack + 1) * PAGE + _SPARE) // _ALIGN) * _ALIGN
        leaves = (end >> 21) - (virt_base >> 21)
        tops = {*range(virt_base >> 30, (end - 1 >> 30) + 1), _LAST_REGION}
        if plan.table_count == 1 + len(tops) + leaves:
            break
        plan.table_count = 1 + len(tops) + leaves
    if plan.stack >= memory_size // PAGE:
        raise InputError(f"{path}: too little memory ({mib(memory_size)}): the domain needs {(plan.stack + 1) * PAGE} bytes to start")
    if end > VMM_START:
        raise InputError(f"{path}: the domain's first mapping ends at {end:#x}: the VMM's addresses begin at {VMM_START:#x}")
    plan.mapped = min(end - virt_base >> 12, memory_size // PAGE)
    return plan


def _write_tables(memory: Memory, frames: Sequence[int], plan: _Plan, virt_base: int) -> dict[int, int]:
    """Writes the tables in their order: the top, the directories, the leaves. Returns the directories' pages by top-level entry."""
    first, last = virt_base >> 12, (virt_base >> 12) + plan.mapped - 1
    leaves = range(first >> 9, (last >> 9) + 1)
    tops = sorted({*(leaf >> 9 for leaf in leaves), _LAST_REGION})
    directories = {top: plan.tables + 1 + n for n, top in enumerate(tops)}
    behind = plan.tables + 1 + len(tops)
    read_only = range(plan.tables, plan.tables + plan.table_count)
    memory.write(plan.tables * PAGE, _table({top: frames[page] << 12 | _PRESENT for top, page in directories.items()}))
    for top, page in directories.items():
        entries = {leaf & 511: frames[behind + n] << 12 | _TABLE for n, leaf in enumerate(leaves) if leaf >> 9 == top}
        memory.write(page * PAGE, _table(entries))
    for n, leaf in enumerate(leaves):
        pages = range(max(leaf << 9, first), min((leaf + 1) << 9, last + 1))
        entries = {
            page & 511: frames[page - first] << 12 | (_READ_ONLY if page - first in read_only else _LEAF) for page in pages
        }
        memory.write((behind + n) * PAGE, _table(entries))
    return directories


def _table(entries: dict[int, int]) -> bytes:
    return struct.pack("<512Q", *(entries.get(n, 0) for n in range(512)))


def _write_start_info(
    memory: Memory, frames: Sequence[int], plan: _Plan, virt_base: int, shared_info: int, module_size: int, command_line: bytes
) -> None:
    def address(page: int) -> int:
        return virt_base + page * PAGE

    words = (
        *(len(frames), shared_info, 0, frames[plan.store], STORE_PORT, frames[plan.console], CONSOLE_PORT),
        *(address(plan.tables), plan.table_count, address(plan.p2m), address(plan.module) if module_size else 0, module_size),
    )
    page = MAGIC.ljust(32, b"\0") + struct.pack("<12I", *words) + command_line.ljust(_COMMAND_LINE, b"\0")
    memory.write(plan.start_info * PAGE, page.ljust(PAGE, b"\0"))
    for page_number in (plan.store, plan.console):
        memory.write(page_number * PAGE, bytes(PAGE))
