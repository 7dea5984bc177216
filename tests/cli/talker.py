"""A multiboot kernel for tests of VMs that live for long: it answers each byte of the serial line with a count, and halts in between.

It says ">" when it is ready, and for each byte the byte, how many there have been (a letter), and two digits of a sum over memory that it goes on
changing.
"""

import struct
from pathlib import Path

from tests.assembly import assemble
from tests.machine.flat import gate, pack, quads

_BASE, _ENTRY, _HANDLER, _IDT, _POINTER, _COUNT, _MEMORY = 0x100000, 0x100020, 0x100400, 0x101000, 0x100300, 0x102000, 0x200000
_PUT = "mov dx,0x3f8; out dx,al"
_START = f"""
    mov esp,0x90000
    .byte 0x0f,0x01,0x1d; .long {_POINTER}
    mov al,0x11; out 0x20,al; mov al,0x20; out 0x21,al; mov al,4; out 0x21,al; mov al,1; out 0x21,al
    mov al,0xef; out 0x21,al
    mov dx,0x3f9; mov al,1; out dx,al
    mov al,'>'; {_PUT}
    idle: sti; hlt; jmp idle
"""
_DIGIT = f"and al,15; add al,48; cmp al,58; jb {{0}}; add al,39; {{0}}: {_PUT}"
_ON_BYTE = f"""
    pushad
    next: mov dx,0x3fd; in al,dx; test al,1; jz done
    mov dx,0x3f8; in al,dx; {_PUT}
    mov ecx,[{_COUNT}]; inc ecx; mov [{_COUNT}],ecx
    mov eax,ecx; and eax,15; add al,65; {_PUT}
    mov edi,{_MEMORY}; mov ebx,ecx
    fill: mov edx,[edi]; lea edx,[edx+edx*4]; add edx,ecx; add edx,edi; mov [edi],edx; add ebx,edx; add edi,4096; cmp edi,{_MEMORY + 0x80000}; jb fill
    mov eax,ebx; shr eax,12; {_DIGIT.format("one")}
    mov eax,ebx; shr eax,8; {_DIGIT.format("two")}
    jmp next
    done: mov al,0x20; out 0x20,al; popad; iretd
"""


def answers(count: int, before: int = 0) -> list[str]:
    """What it says of so many bytes, behind each byte, when it has had `before`."""
    memory, said = [0] * 128, []
    for n in range(1, before + count + 1):
        total = n
        for page in range(128):
            memory[page] = (memory[page] * 5 + n + _MEMORY + 4096 * page) & 0xFFFFFFFF
            total = (total + memory[page]) & 0xFFFFFFFF
        said.append(f"{chr(65 + n % 16)}{total >> 12 & 15:x}{total >> 8 & 15:x}")
    return said[before:]


def write(folder: Path) -> str:
    """Writes the kernel; returns its path."""
    image = bytearray(_COUNT + 4096 - _BASE)
    flags = 1 << 16
    image[:32] = struct.pack("<8I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, _BASE, _BASE, 0, 0, _ENTRY)
    parts = {
        _ENTRY: assemble(_START, _ENTRY),
        _HANDLER: assemble(_ON_BYTE, _HANDLER),
        _IDT: quads([gate(_HANDLER) if vector == 0x24 else 0 for vector in range(256)]),
        _POINTER: pack([0x7FF | (_IDT & 0xFFFF) << 16, _IDT >> 16]),
    }
    for at, part in parts.items():
        image[at - _BASE : at - _BASE + len(part)] = part
    path = folder / "talker.bin"
    path.write_bytes(image)
    return str(path)


_WORKER = f"""
    mov esp,0x90000; mov al,'>'; {_PUT}
    mov ebp,{{rounds}}; mov ebx,1
    whole: mov edi,{_MEMORY}
    part: mov eax,[edi]; imul eax,eax,0x19660d; add eax,0x3c6ef35f; add eax,edi; xor eax,ebx; mov [edi],eax; rol ebx,5; add ebx,eax
    add edi,64; cmp edi,{_MEMORY + 0x400000}; jb part
    dec ebp; jnz whole
    mov ecx,8
    digit: rol ebx,4; mov eax,ebx; {_DIGIT.format("one")}
    dec ecx; jnz digit
    mov al,'.'; {_PUT}
    mov al,0; out 0xf4,al; hlt
"""


def write_worker(folder: Path, rounds: int) -> str:
    """Writes a kernel that goes over 4 MiB of memory so many times, says ">", and at the end a checksum and "."; returns its path."""
    image = bytearray(_COUNT + 4096 - _BASE)
    flags = 1 << 16
    image[:32] = struct.pack("<8I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, _BASE, _BASE, 0, 0, _ENTRY)
    code = assemble(_WORKER.format(rounds=rounds), _ENTRY)
    image[_ENTRY - _BASE : _ENTRY - _BASE + len(code)] = code
    path = folder / "worker.bin"
    path.write_bytes(image)
    return str(path)
