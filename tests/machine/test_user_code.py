"""Translated user code: it sees the guest's own machine, its faults are precise, and it can neither leave its window nor harm it.

What is expected stands in the manual and is written down here by hand. Each guest ends in a handler that notes the frame that it got.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from bt.decode import decode
from tests.assembly import assemble
from tests.machine.flat import FINISH, finish, flat_vm, words
from tests.machine.small_kernel import LOG, TABLES, TO_USER, USER, USER_PAGES, USER_TABLE, small_kernel
from vmm.cpu_state import Cpu
from vmm.vm import Vm

DATA = USER + 0x4000  # a user page for what a case leaves
SEEN = USER_PAGES + 0x4000
FAR = USER + 0x800
WAYS = pytest.mark.parametrize(("ring", "cached"), ((1, True), (3, True), (1, False), (3, False)))
RINGS = pytest.mark.parametrize("ring", (1, 3))
_FAULTS = (0, 1, 3, 4, 5, 6, 11, 12, 13, 14)
_WITH_ERROR = (11, 12, 13, 14)
_FRAME = LOG + 0x100


def _handlers() -> dict[int, str]:
    """For each vector: notes vector, error code, EIP, CS, EFLAGS and CR2, and ends the run."""
    made = {}
    for vector in (*_FAULTS, 0x80):
        error = "pop eax" if vector in _WITH_ERROR else "mov eax,0"
        made[vector] = f"""
            {error}; mov [{_FRAME + 4}],eax; mov dword ptr [{_FRAME}],{vector}; pop eax; mov [{_FRAME + 8}],eax; pop eax; mov [{_FRAME + 12}],eax
            pop eax; mov [{_FRAME + 16}],eax; mov eax,cr2; mov [{_FRAME + 20}],eax; {FINISH}
        """
    return made


def entered(flags: int) -> str:
    """Enters user mode with these flags."""
    return TO_USER.replace("0x202", f"{flags:#x}")


def run_user(code: str, *, ring: int, cached: bool = True, flags: int = 0x202, before: str = "", far: str = "nop", translate_user: bool = True) -> Vm:
    """The stopped VM of a guest whose user code `code` ran into one of the handlers. far: more of it, at FAR."""
    guest = small_kernel(f"{before}; {entered(flags)}", user=f"{code}; int 0x80", handlers=_handlers())
    guest[USER_PAGES + FAR - USER] = assemble(f"{far}; int 0x80", FAR)
    vm = flat_vm(guest, ring=ring, stubs_in_cache=cached, translate_user=translate_user)
    finish(vm)
    return vm


@dataclass(frozen=True)
class Sight:
    """User code that leaves words at DATA; flags: what it is entered with."""

    code: str
    seen: tuple[int, ...]
    flags: int = 0x202
    far: str = "nop"


_GDT, _IDT = TABLES, TABLES + 0x1000
SIGHTS = {
    "sgdt": Sight(f"sgdt [{DATA}]", ((_GDT & 0xFFFF) << 16 | 0x2F, _GDT >> 16)),
    "sidt": Sight(f"sidt [{DATA}]", ((_IDT & 0xFFFF) << 16 | 0x7FF, _IDT >> 16)),
    "sldt": Sight(f"sldt eax; mov [{DATA}],eax", (0,)),
    "str": Sight(f"str eax; mov [{DATA}],eax; str word ptr [{DATA + 4}]", (0x28, 0x28)),
    "smsw": Sight(f"smsw eax; mov [{DATA}],eax; smsw word ptr [{DATA + 4}]", (0x80000011, 0x11)),
    "lar": Sight(f"mov ecx,0x1b; lar eax,ecx; mov [{DATA}],eax; setz [{DATA + 4}]; mov ecx,8; lar eax,ecx; setz [{DATA + 5}]", (0xC0FB00, 1)),
    "lsl": Sight(f"mov ecx,0x23; lsl eax,ecx; mov [{DATA}],eax; setz [{DATA + 4}]; mov ecx,0x28; lsl eax,ecx; setz [{DATA + 5}]", (0xFFFFFFFF, 1)),
    "verr": Sight(f"mov ecx,0x1b; verr cx; setz [{DATA}]; mov ecx,0x10; verr cx; setz [{DATA + 1}]", (1,)),
    "verw": Sight(f"mov ecx,0x23; verw cx; setz [{DATA}]; mov ecx,0x1b; verw cx; setz [{DATA + 1}]", (1,)),
    "cs": Sight(f"mov eax,cs; mov [{DATA}],eax; .byte 0x0e; pop ecx; mov [{DATA + 4}],ecx", (0x1B, 0x1B)),
    "ss": Sight(f"mov eax,ss; mov [{DATA}],eax; .byte 0x16; pop ecx; mov [{DATA + 4}],ecx", (0x23, 0x23)),
    "arpl": Sight(f"mov eax,8; mov ecx,3; arpl ax,cx; mov [{DATA}],eax; setz [{DATA + 4}]", (0xB, 1)),
    "pushf": Sight(f"cmp eax,eax; pushfd; pop dword ptr [{DATA}]", (0x246,)),
    "pushf, IF clear": Sight(f"cmp eax,eax; pushfd; pop dword ptr [{DATA}]", (0x46,), flags=2),
    "pushf, IOPL 1": Sight(f"cmp eax,eax; pushfd; pop dword ptr [{DATA}]", (0x1246,), flags=0x1202),
    "pushfw": Sight(f"cmp eax,eax; push 0; pushf; pop dword ptr [{DATA}]", (0x246,)),
    "popf changes neither IF nor IOPL": Sight(f"push 0x30d7; popfd; pushfd; pop dword ptr [{DATA}]", (0x2D7,)),
    "popf, IF clear": Sight(f"push 0x202; popfd; pushfd; pop dword ptr [{DATA}]", (2,), flags=2),
    "popf, IOPL 3": Sight(f"push 0x46; popfd; pushfd; pop dword ptr [{DATA}]", (0x3046,), flags=0x3202),
    "popf, IOPL 3, IF set": Sight(f"push 0x246; popfd; pushfd; pop dword ptr [{DATA}]", (0x3246,), flags=0x3002),
    "cli and sti, IOPL 3": Sight(
        f"cmp eax,eax; cli; pushfd; pop dword ptr [{DATA}]; sti; pushfd; pop dword ptr [{DATA + 4}]",
        (0x3046, 0x3246),
        flags=0x3202,
    ),
    "iret": Sight(f"pushfd; .byte 0x0e; call w; w: add dword ptr [esp],5; .byte 0xcf; nop; mov dword ptr [{DATA}],7", (7,)),
    "call far": Sight(f".byte 0x9a; .long {FAR}; .byte 0x1b,0; mov [{DATA}],eax", (9,), far="mov eax,9; retf"),
    "mov ss": Sight(f"mov ecx,0x23; mov ss,ecx; push ecx; pop dword ptr [{DATA}]", (0x23,)),
    "mov ds": Sight(f"xor eax,eax; mov es,eax; mov fs,eax; mov ecx,0x23; mov fs,ecx; mov eax,fs; mov fs:[{DATA}],eax", (0x23,)),
}


@WAYS
@pytest.mark.parametrize("name", SIGHTS)
def test_what_user_code_sees(name: str, ring: int, cached: bool) -> None:
    """The nine unprivileged reads, flags and segments are the guest's own."""
    sight = SIGHTS[name]
    vm = run_user(sight.code, ring=ring, cached=cached, flags=sight.flags, far=sight.far)
    assert words(vm, _FRAME, 1) == [0x80]
    assert words(vm, SEEN, len(sight.seen)) == list(sight.seen)


@WAYS
@pytest.mark.parametrize("name", [name for name in SIGHTS if SIGHTS[name].flags & 0x3200 != 0x200])
def test_direct_execution_leaves_to_translation_what_it_would_show_wrongly(name: str, ring: int, cached: bool) -> None:
    """The same where user code runs directly as a rule: not with IF clear, nor with an IOPL."""
    sight = SIGHTS[name]
    vm = run_user(sight.code, ring=ring, cached=cached, flags=sight.flags, far=sight.far, translate_user=False)
    assert words(vm, SEEN, len(sight.seen)) == list(sight.seen)
    assert vm.backend.caches["user"].blocks > 0


_GP = (13, 0)
FAULTS = {
    **{
        name: (code, _GP)
        for name, code in {
            "cli": "cli", "sti": "sti", "hlt": "hlt", "mov eax,cr0": "mov eax,cr0", "mov cr0,eax": "mov cr0,eax", "mov eax,dr0": "mov eax,dr0",
            "clts": "clts", "invd": "invd", "wbinvd": "wbinvd", "lgdt": "lgdt [eax]", "lidt": "lidt [eax]", "lldt": "lldt ax", "ltr": "ltr ax",
            "lmsw": "lmsw ax",
            "invlpg": "invlpg [eax]", "rdmsr": "rdmsr", "wrmsr": "wrmsr", "rdpmc": "rdpmc", "in": "in al,0x71", "out": "out 0x71,al",
        }.items()
    },
    "mov ds, kernel's": ("mov eax,0x10; mov ds,eax", (13, 0x10)),
    "mov ss, null": ("xor eax,eax; mov ss,eax", (13, 0)),
    "jmp far, kernel's": (".byte 0xea,0,0,0x10,0,8,0", (13, 8)),
    "int without a gate": ("int 0x40", (13, 0x40 * 8 + 2)),
    "int 14 through a kernel gate": ("int 14", (13, 14 * 8 + 2)),
    "ud2": ("ud2", (6, 0)),
    "syscall": (".byte 0x0f,0x05", (6, 0)),
    "divide": ("xor ecx,ecx; div ecx", (0, 0)),
    "read the kernel's": ("mov eax,[0x100000]", (14, 5)),
    "write the kernel's": ("mov [0x100000],eax", (14, 7)),
    "read nothing": ("mov eax,[0x800000]", (14, 4)),
    "push to nothing": ("mov esp,0x800000; push eax", (14, 6)),
    "pop from nothing": ("mov esp,0x800000; pop eax", (14, 4)),
    "ret from nothing": ("mov esp,0x800000; ret", (14, 4)),
    "popf from nothing": ("mov esp,0x800000; popfd", (14, 4)),
    "pushf to nothing": ("mov esp,0x800000; pushfd", (14, 6)),
    "call through nothing": ("call dword ptr [0x800000]", (14, 4)),
    "sgdt to nothing": ("sgdt [0x800000]", (14, 6)),
    "str to the kernel's": ("str word ptr [0x100000]", (14, 7)),
}  # fmt: skip


@WAYS
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_precise(name: str, ring: int, cached: bool) -> None:
    """Vector, error code, EIP of the very instruction, CS, and flags that the code before it left."""
    code, (vector, error) = FAULTS[name]
    *before, last = code.split("; ")
    vm = run_user("; ".join([*before, f"jmp {FAR}"]), far=f"stc; {last}", ring=ring, cached=cached)
    frame = words(vm, _FRAME, 5)
    assert frame[:4] == [vector, error, FAR + 1, 0x1B]
    assert frame[4] & 0x3301 == 0x201
    assert "div" in code or vector == 13 or frame[4] & 0x10000  # RF stands in the images of faults


@WAYS
@pytest.mark.parametrize(("target", "error"), ((0x100000, 5), (0x800000, 4), (USER + 0x20000 - 0x4000, 4)))
@pytest.mark.parametrize("how", ("jmp eax", "call eax", "push eax; ret", "pushfd; push 0x1b; push eax; .byte 0xcf"))
def test_fetches_have_the_users_rights(target: int, error: int, how: str, ring: int, cached: bool) -> None:
    """A jump into the kernel's pages or into nothing: the fault is that of the fetch at the target, after the jump."""
    vm = run_user(f"mov eax,{target}; {how}", ring=ring, cached=cached)
    assert [*words(vm, _FRAME, 4), words(vm, _FRAME + 20, 1)[0]] == [14, error, target, 0x1B, target]


@WAYS
def test_running_over_the_end_of_a_page(ring: int, cached: bool) -> None:
    """Code that runs on into an absent page faults at the first byte there, with an instruction across the boundary and without one."""
    absent = USER + 0x3000
    gone = f"mov dword ptr [{USER_TABLE + 12}],0"
    for last, eip, cr2 in (("nop", absent, absent), (".byte 0xb8", absent - 1, absent)):
        code = f"mov edi,{absent - 1}; mov byte ptr [edi],0x90; mov byte ptr [edi],{'0x90' if last == 'nop' else '0xb8'}; jmp edi"
        vm = run_user(code, ring=ring, cached=cached, before=gone)
        assert words(vm, _FRAME, 4) == [14, 4, eip, 0x1B]
        assert words(vm, _FRAME + 20, 1) == [cr2]


@WAYS
@pytest.mark.parametrize("through", ("popfd", "iret"))
def test_single_steps(through: str, ring: int, cached: bool) -> None:
    """TF set by popf or by the kernel's iret: a debug exception behind each instruction, callouts and jumps included, with TF in its image."""
    code = "nop; str eax; jmp x; x: push eax; pushfd; pop ecx; pushfd; and dword ptr [esp],0xfffffeff; popfd; int 0x80"
    start = "push 0x302; popfd" if through == "popfd" else "nop"
    step = f"inc dword ptr [{LOG}]; push eax; mov eax,[esp+12]; shr eax,8; and eax,1; add [{LOG + 4}],eax; pop eax; .byte 0xcf"
    end = f"mov [{LOG + 8}],ecx; {FINISH}"
    guest = small_kernel(
        entered(0x302 if through == "iret" else 0x202), user=f"{start}; {code}", handlers={1: step, 0x80: end}
    )
    vm = flat_vm(guest, ring=ring, stubs_in_cache=cached, translate_user=True)
    finish(vm)
    steps, images, shown = words(vm, LOG, 3)
    assert steps == 9 + (0 if through == "popfd" else 4)  # from the instruction behind popfd, or from the first one, to the popfd that ends it
    assert images == steps - 1  # the last one shows it cleared
    assert shown & 0x100


@RINGS
def test_interrupts_come_between_instructions(ring: int) -> None:
    """A fast timer over user code of all kinds: the handler's view of EIP is always an instruction's start, and nothing of the work is lost."""
    pic = "mov al,0x11; out 0x20,al; mov al,0x20; out 0x21,al; mov al,4; out 0x21,al; mov al,1; out 0x21,al; mov al,0xfe; out 0x21,al"
    pit = "mov al,0x34; out 0x43,al; mov al,0x60; out 0x40,al; mov al,0; out 0x40,al"
    note = f"mov eax,[esp+4]; sub eax,{USER}; cmp eax,0x100; ja o; inc dword ptr [{LOG}+eax*4]; o: nop"
    tick = f"push eax; {note}; mov al,0x20; out 0x20,al; pop eax; .byte 0xcf"
    user = f"""
        mov ebp,600000; xor esi,esi; l: pushfd; popfd; call f; push esi; pop edx; mov ecx,cs; inc dword ptr [{DATA}]; dec ebp; jnz l; int 0x80
        f: inc esi; ret
    """
    guest = small_kernel(f"{pic}; {pit}; {TO_USER}", user=user, handlers={0x20: tick, 0x80: FINISH})
    vm = flat_vm(guest, ring=ring, translate_user=True)
    finish(vm)
    assert vm.machine.state[Cpu.ESI] == 600_000
    assert words(vm, SEEN, 1) == [600_000]
    code = vm.memory.read(USER_PAGES, 0x100)
    starts = _instruction_starts(code)
    ticks = words(vm, LOG, 0x100)
    assert sum(ticks) > 5
    assert {eip for eip, count in enumerate(ticks) if count} <= starts


def _instruction_starts(code: bytes) -> set[int]:
    return {instruction.address for instruction in decode(code, 0)}


@RINGS
def test_scribbling_over_the_window(ring: int) -> None:
    """A user writes every page of its window: the first takes it, and nothing comes of that; all others fault as if nothing were there."""
    probe = flat_vm(small_kernel(TO_USER, user="int 0x80", handlers={0x80: FINISH}), ring=ring, translate_user=True)
    finish(probe)
    base = probe.backend.caches["user"].base
    scribble = f"mov edi,{base}; mov ecx,1024; mov eax,-1; cld; rep stosd"
    work = f"xor esi,esi; mov ecx,3; l: call f; dec ecx; jnz l; mov [{DATA}],esi; mov [edi],eax; f: inc esi; ret"
    vm = run_user(f"{scribble}; {work}", ring=ring)
    assert words(vm, SEEN, 1) == [3]
    assert words(vm, _FRAME, 2) == [14, 6]
    assert words(vm, _FRAME + 20, 1) == [base + 0x1000]
    for page in (0x2000, 0x20000, 0x260000, 0x400000):
        vm = run_user(f"mov eax,{base + page}; mov [eax],eax", ring=ring)
        assert [*words(vm, _FRAME, 2), *words(vm, _FRAME + 20, 1)] == [14, 6, base + page]


@RINGS
def test_a_jump_into_the_window_is_a_fault(ring: int) -> None:
    """Whatever leads there, a jump's target is looked up as the guest's own address, where it has nothing."""
    probe = flat_vm(small_kernel(TO_USER, user="int 0x80", handlers={0x80: FINISH}), ring=ring, translate_user=True)
    finish(probe)
    target = probe.backend.caches["user"].translations[-1].start
    by_the_kernel = f"push 0x23; push {USER + 0x800}; push 0x202; push 0x1b; push {target}; .byte 0xcf"
    for before, code in (("nop", f"mov eax,{target}; jmp eax"), (by_the_kernel, "nop")):
        vm = run_user(code, ring=ring, before=before)
        assert [*words(vm, _FRAME, 3), *words(vm, _FRAME + 20, 1)] == [14, 4, target, target]


@RINGS
def test_the_users_window_moves_too(ring: int) -> None:
    """The kernel maps the range of the user's window for the user, who finds his own memory there."""
    probe = flat_vm(small_kernel(TO_USER, user="int 0x80", handlers={0x80: FINISH}), ring=ring, translate_user=True)
    finish(probe)
    base = probe.backend.caches["user"].base & ~0x3FFFFF
    handlers = _handlers() | {0x81: f"mov eax,{USER_TABLE | 7}; mov [0x300000 + {base >> 20}],eax; mov eax,cr3; mov cr3,eax; .byte 0xcf"}
    user = f"mov dword ptr [{DATA}],5; int 0x81; mov eax,[{base + 0x4000}]; inc eax; mov [{base + 0x4000}],eax; mov ecx,[{DATA}]; int 0x80"
    vm = flat_vm(small_kernel(TO_USER, user=user, handlers=handlers), ring=ring, translate_user=True)
    finish(vm)
    assert words(vm, _FRAME, 1) == [0x80]
    assert words(vm, SEEN, 1) == [6]
    assert vm.backend.caches["user"].base & ~0x3FFFFF != base


@RINGS
def test_translations_follow_the_page_that_is_mapped(ring: int) -> None:
    """Two address spaces with the same code at the same address, then with other code: what is mapped runs; what is the same is translated once."""
    directory, table, page = 0x340000, 0x341000, 0x342000
    other = f"""
        cld; mov esi,0x300000; mov edi,{directory}; mov ecx,1024; rep movsd; mov dword ptr [{directory + 4}],{table | 7}
        mov esi,{USER_TABLE}; mov edi,{table}; mov ecx,1024; rep movsd; mov dword ptr [{table}],{page | 7}
        mov esi,{USER_PAGES}; mov edi,{page}; mov ecx,1024; rep movsd
    """.replace("rep movsd", ".byte 0xf3,0xa5")
    swap = f"mov eax,cr3; xor eax,{directory ^ 0x300000}; mov cr3,eax; .byte 0xcf"
    user = "xor ebx,ebx; mov ebp,200; l: inc ebx; int 0x81; dec ebp; jnz l; int 0x82; inc ebx; int 0x81; inc ebx; int 0x80"
    change = f"mov edi,[esp]; sub edi,{USER}; mov byte ptr [edi+{page}],0x4b; .byte 0xcf"  # inc ebx becomes dec ebx, in the other one only
    guest = small_kernel(f"{other}; {TO_USER}", user=user, handlers={0x80: FINISH, 0x81: swap, 0x82: change})
    vm = flat_vm(guest, ring=ring, translate_user=True)
    finish(vm)
    assert vm.machine.state[Cpu.EBX] == 202
    assert vm.backend.caches["user"].blocks < 12


@RINGS
def test_direct_and_translated_in_turns(ring: int) -> None:
    """User code whose IOPL the kernel changes again and again runs now so, now so, and the same memory comes of it."""
    toggle = "xor dword ptr [esp+8],0x3000; .byte 0xcf"
    user = f"mov ebp,300; xor ebx,ebx; l: pushfd; pop eax; shr eax,12; and eax,3; add ebx,eax; int 0x81; dec ebp; jnz l; mov [{DATA}],ebx; int 0x80"
    vm = flat_vm(small_kernel(TO_USER, user=user, handlers={0x80: FINISH, 0x81: toggle}), ring=ring)
    finish(vm)
    assert words(vm, SEEN, 1) == [450]


@RINGS
def test_bases_that_are_not_zero(ring: int) -> None:
    """Code and stack segments of the user's with bases: jumps, calls, flags and overrides find the right memory."""
    code_base, stack_base = USER + 0x1000, USER + 0x6000
    gdt = f"""
        mov dword ptr [{_GDT + 0x30}],{(code_base & 0xFFFF) << 16 | 0xFFFF}; mov dword ptr [{_GDT + 0x34}],{0x00CFFB00 | code_base >> 16}
        mov dword ptr [{_GDT + 0x38}],{(stack_base & 0xFFFF) << 16 | 0xFFFF}; mov dword ptr [{_GDT + 0x3C}],{0x00CFF300 | stack_base >> 16}
        mov dword ptr [0x30e000],{_GDT << 16 & 0xFFFFFFFF | 0x3F}; mov dword ptr [0x30e004],{_GDT >> 16}; .byte 0x0f,0x01,0x15; .long 0x30e000
        mov eax,0x23; mov ds,eax; mov es,eax; push 0x3b; push 0x800; push 0x202; push 0x33; push 0x10; .byte 0xcf
    """
    inner = f"call 0x100; mov [{DATA}],eax; pushfd; popfd; mov ecx,cs:[0x200]; mov [{DATA + 4}],ecx; mov edx,[esp-4]; mov [{DATA + 8}],edx; int 0x80"
    parts = small_kernel(gdt, user="nop", handlers=_handlers())
    parts |= {USER_PAGES + 0x1010: assemble(inner, 0x10), USER_PAGES + 0x1100: assemble("mov eax,0x77; ret", 0x100)}
    parts |= {USER_PAGES + 0x1200: (0x1234).to_bytes(4, "little")}
    vm = flat_vm(parts, ring=ring, translate_user=True)
    finish(vm)
    assert words(vm, _FRAME, 4) == [0x80, 0, words(vm, _FRAME + 8, 1)[0], 0x33]
    assert words(vm, SEEN, 2) == [0x77, 0x1234]


def test_nothing_of_the_kernels_is_shown() -> None:
    """The user's copy of the VMM's words has neither CR3 nor the kernel's spilled registers."""
    vm = run_user("nop", ring=1)
    copies = vm.backend.user_code.words
    assert copies[0x40 >> 2] == 0x1B
    assert not any(copies[at >> 2] for at in (0x34, 0x38, 0x3C))

