"""Loading a guest: a kernel's file in, filled guest memory and a start state out.

Knows which kinds of image there are: multiboot 1 (as ELF, or flat with addresses in its header), plain 32-bit ELF, Linux (a bzImage, or any plain
64-bit ELF), and a flat binary at an address, each gzip'ed or not. Knows no virtual CPU and no device: it runs nothing.

Everything is checked and placed before the first byte is written, so that bad input leaves guest memory as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from vmm.boot import bootinfo, elf, linux, multiboot
from vmm.boot.image import mib, read_file, read_image
from vmm.boot.layout import Layout
from vmm.boot.refusal import refusal
from vmm.boot.symbols import Range, Symbols
from vmm.boot.xen_notes import has_xen_notes
from vmm.bus import Memory
from vmm.errors import InputError
from vmm.start import GDT, Start

__all__ = ["Start", "Symbols", "load"]


def load(
    path: str,
    memory: Memory,
    *,
    append: str = "",
    modules: Sequence[str] = (),
    initrd: str | None = None,
    address: int | None = None,
    long_mode: bool = False,
) -> Start:
    """Loads the kernel image `path` into `memory` and says how to start it.

    `append` is the kernel command line; a multiboot kernel is told "PATH APPEND", as by QEMU. Each of `modules` is "FILE ARGS", told to the kernel
    as it stands; `initrd` is more of them in QEMU's form: separated by commas, a doubled comma stands for one. `address` is the guest-physical
    address of a flat binary, which starts there. `long_mode`: the CPU has it, so 64-bit kernels can run.

    Raises InputError, and then nothing is written: unreadable, empty, truncated or corrupted files, 64-bit ones without long mode, unknown
    formats, a broken multiboot header, anything that has no place in memory, an absent module, an option that this kind of image has no use for.
    """
    image = read_image(path, memory.size)
    layout = Layout(path, memory.size)
    if address is None and linux.is_linux(image):
        _check_no_modules(path, modules)
        start = linux.load(path, image, layout, _c_string("--append", append), _disk(initrd, layout), long_mode=long_mode)
        layout.write(memory)
        return start
    module_texts = [*modules, *_initrd_modules(initrd)]
    if address is not None:
        start = _load_flat(path, image, layout, address)
        _check_unused(path, "a flat binary", append, module_texts)
    else:
        if elf.is_elf(image):
            elf.check_machine(path, image, long_mode=long_mode)
        header = multiboot.find(path, image)
        if header is not None:
            start = _load_multiboot(path, image, layout, header, append, module_texts)
        elif elf.is_elf(image) and elf.is_long(image):
            _check_no_modules(path, modules)
            start = linux.load_vmlinux(path, image, layout, _c_string("--append", append), _disk(initrd, layout))
        elif elf.is_elf(image):
            if has_xen_notes(image):
                raise InputError(f"{path}: a paravirtual kernel for Xen, which --backend pv runs")
            start = _load_elf(path, image, layout)
            _check_unused(path, "an ELF kernel without a multiboot header", append, module_texts)
        else:
            unknown = "not a kernel: neither multiboot nor ELF (a flat binary needs its address)"
            raise InputError(f"{path}: {refusal(image, unknown)}")
    layout.write(memory)
    return start


def _check_no_modules(path: str, modules: Sequence[str]) -> None:
    if modules:
        raise InputError(f"{path}: a Linux kernel takes no modules (--module): its RAM disk is --initrd")


def _disk(initrd: str | None, layout: Layout) -> bytes | None:
    return None if initrd is None else read_file(initrd, layout.memory_end, f"larger than the guest's memory ({mib(layout.memory_end)})")


def _load_flat(path: str, image: bytes, layout: Layout, address: int) -> Start:
    if elf.is_elf(image):
        raise InputError(f"{path}: an ELF file says itself where it goes: an address is for flat binaries")
    layout.put("the flat binary", address, image, len(image))
    symbols = Symbols(path, ranges=[Range(address, address, len(image))])
    return Start(entry=address, kind="flat", symbols=symbols, gdt_base=_place_gdt(layout))


def _load_elf(path: str, image: bytes, layout: Layout) -> Start:
    parsed = elf.parse(path, image)
    entry = _place_segments(path, parsed, image, layout)
    return Start(entry=entry, kind="elf", symbols=_symbols(path, parsed, image), gdt_base=_place_gdt(layout))


def _load_multiboot(path: str, image: bytes, layout: Layout, header: multiboot.Header, append: str, module_texts: Sequence[str]) -> Start:
    parsed = None
    if header.flat is not None:
        entry = _place_flat(path, header.flat, image, layout)
        with suppress(InputError):  # its ELF headers, if any, do not count: they only may know the symbols
            parsed = elf.parse(path, image, long_mode=True)
    elif elf.is_elf(image):
        parsed = elf.parse(path, image, long_mode=True)  # which was looked at before
        entry = _place_segments(path, parsed, image, layout)
    else:
        # A disk image with a multiboot kernel near its beginning gets here as well.
        raise InputError(f"{path}: {refusal(image, 'multiboot kernel that is not ELF and whose header gives no load addresses')}")
    modules = [_place_module(text, layout) for text in module_texts]
    sections = bootinfo.place_symbols(layout, parsed, image) if parsed else None
    gdt_base = _place_gdt(layout)
    info = bootinfo.place(layout, _c_string("--append", f"{path} {append}"), modules, sections, header.video)
    if parsed:
        symbols = _symbols(path, parsed, image)
    else:
        symbols = Symbols(path, ranges=[Range(header.flat.gpa, header.flat.gpa, header.flat.total)] if header.flat else ())
    return Start(entry=entry, kind="multiboot", symbols=symbols, gdt_base=gdt_base, eax=multiboot.LOADER_MAGIC, ebx=info)


def _place_segments(path: str, parsed: elf.Elf, image: bytes, layout: Layout) -> int:
    """Places every segment at its physical address; the result is the physical entry point."""
    for segment in parsed.segments:
        layout.put("the segment", segment.paddr, image[segment.offset : segment.offset + segment.filesz], segment.memsz)
    entry = parsed.physical_entry()
    if not any(0 <= entry - segment.paddr < segment.memsz for segment in parsed.segments):
        raise InputError(f"{path}: the entry point {parsed.entry:#x} lies in no segment")
    return entry


def _place_flat(path: str, flat: multiboot.Flat, image: bytes, layout: Layout) -> int:
    layout.put("the kernel", flat.gpa, image[flat.offset : flat.offset + flat.size], flat.total)
    if not 0 <= flat.entry - flat.gpa < flat.total:
        raise InputError(f"{path}: the entry point {flat.entry:#x} lies outside the kernel")
    return flat.entry


def _place_gdt(layout: Layout) -> int:
    gpa = layout.for_descriptors(len(GDT))
    layout.fill(gpa, GDT)
    return gpa


def _place_module(text: str, layout: Layout) -> bootinfo.Module:
    file = text.split(" ", 1)[0]
    if not file:
        raise InputError(f"--module {text!r}: names no file")
    data = read_file(file, layout.memory_end, f"module is larger than the guest's memory ({mib(layout.memory_end)})")
    gpa = layout.after_kernel(f"module {file}", len(data))
    layout.fill(gpa, data)
    return bootinfo.Module(gpa, len(data), _c_string("--module", text))


def _symbols(path: str, parsed: elf.Elf, image: bytes) -> Symbols:
    ranges = [Range(segment.vaddr, segment.paddr, segment.memsz) for segment in parsed.segments]
    return Symbols(path, *elf.symbol_table(parsed, image), ranges, long=parsed.long)


def _initrd_modules(initrd: str | None) -> list[str]:
    if initrd is None:
        return []
    return [text.replace("\0", ",") for text in initrd.replace(",,", "\0").split(",")]


def _check_unused(path: str, kind: str, append: str, module_texts: Sequence[str]) -> None:
    if append:
        raise InputError(f"{path}: {kind} takes no command line (--append)")
    if module_texts:
        raise InputError(f"{path}: {kind} takes no modules (--module, --initrd)")


def _c_string(option: str, text: str) -> bytes:
    """`text` as the bytes that the user typed. Raises InputError for text that C cannot hold."""
    if "\0" in text:
        raise InputError(f"{option}: contains a NUL character")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InputError(f"{option}: contains a character that has no bytes") from None
