"""What a Xen guest sees of its virtual CPU: hypercalls, frames of exceptions, upcalls, user mode, and the instructions that the ABI emulates."""

from __future__ import annotations

import struct

import pytest

from tests.machine.pv import (
    BASE,
    CODE,
    DATA,
    FINISH,
    HANDLERS,
    HYPERCALLS,
    INFO,
    IRET,
    LOG,
    STACK,
    TABLE,
    USER,
    call,
    describe,
    domain_of,
    log,
    map_page,
    page_of,
    pv_vm,
    run,
    traps,
)
from vmm.exits import End
from vmm.observation import observe

_SAVE_FRAME = "; ".join(f"mov eax,[esp+{4 * n}]; mov [{LOG + 4 * n}],eax" for n in range(6))
_SYSTEM_CALL, _END = 0x30, 0x31  # vectors of these guests
_USER_PAGES = f"{map_page(USER, page_of(USER), 0x67)}; {map_page(USER + 0x1000, page_of(USER) + 1, 0x67)}"
_TO_USER = f"push 0xe033; push {USER + 0x1800}; push 0x202; push 0xe02b; push {USER}; {IRET}"
_ENTER = f"{call(0, TABLE)}; {call(3, 0xE021, STACK)}; {_USER_PAGES}; {_TO_USER}"
_ENOSYS, _EFAULT, _EINVAL, _EPERM = (-error & 0xFFFFFFFF for error in (38, 14, 22, 1))


def _handler(vector: int) -> int:
    return HANDLERS + 0x100 * vector


def _store(at: int, *values: int) -> str:
    return "; ".join(f"mov dword ptr [{at + 4 * n}],{value}" for n, value in enumerate(values))


def test_start_of_day() -> None:
    """Registers, selectors and the start info page are as the ABI has them; frames differ from pages everywhere."""
    vm = run({CODE: f"mov [{LOG + 4}],cs; mov [{LOG + 8}],ss; mov [{LOG + 12}],ds; pushfd; pop eax; mov [{LOG + 16}],eax; {FINISH}"})
    _, cs, ss, ds, flags = log(vm, 5)
    assert (cs & 0xFFFF, ss & 0xFFFF, ds & 0xFFFF) == (0xE019, 0xE021, 0xE021)
    assert flags & 0x3200 == 0x200
    domain = domain_of(vm)
    info = int.from_bytes(domain.mmu.read(INFO, 4), "little")
    page = domain.mmu.read(info, 1104 + 8)
    assert page[:16] == b"xen-3.0-x86_32p\0"
    pages, shared, flags, store, store_port, console, console_port, base, count, p2m, module, size = struct.unpack_from("<12I", page, 32)
    assert (pages, flags, module, size) == (vm.memory.count, 0, 0, 0)
    assert (store_port, console_port) == (1, 2)
    assert shared == domain.shared.mfn << 12
    listed = struct.unpack(f"<{pages}I", domain.mmu.read(p2m, 4 * pages))
    assert list(listed) == list(vm.memory.frames)
    assert not [pfn for pfn, mfn in enumerate(listed) if pfn == mfn]
    assert {store, console} <= set(listed)
    assert domain.mmu.translate(base) >> 12 == domain.mmu.base
    assert not [n for n in range(count) if domain.mmu.leaf_entry(base + n * 0x1000)[1] & 2], "page tables are mapped read-only"
    table = domain.mmu.read(0xF5800000, 4 * domain.frames.count)
    assert [struct.unpack_from("<I", table, 4 * mfn)[0] for mfn in listed] == list(range(pages))


def test_hypercall_page_and_int() -> None:
    """A hypercall goes through the page or by INT 82h; one that is not offered gives -ENOSYS and is counted."""
    through = f"mov ebx,0; mov eax,{HYPERCALLS + 32 * 17}; call eax; mov [{LOG}],eax"
    vm = run({CODE: f"{through}; {call(17, 0, log_at=1)}; {call(31, 0, log_at=2)}; {call(999, log_at=3)}; {FINISH}"})
    assert log(vm, 4) == [4 << 16 | 17, 4 << 16 | 17, _ENOSYS, _ENOSYS]
    assert vm.stats.hypercalls["xen_version"] == 2
    assert vm.stats.hypercalls["31 (not offered)"] == 1


def test_an_exception_in_the_kernel() -> None:
    """EIP at the instruction, CS with the upcall mask above it, EFLAGS with IF as the mask has it, an error code where there is one."""
    vm = run({CODE: f"{call(0, TABLE)}; mov eax,[0x10]; {FINISH}", TABLE: traps(14), _handler(14): f"{_SAVE_FRAME}; {FINISH}"})
    error, eip, cs, flags = log(vm, 4)
    assert (error, cs, flags & 0x3200) == (0, 1 << 16 | 0xE019, 0)
    assert domain_of(vm).mmu.read(eip, 1)[0] in (0xA1, 0x8B)
    assert domain_of(vm).shared.words[2] == 0x10, "CR2 in the shared info page"


def test_the_upcall_mask_is_the_virtual_if() -> None:
    """With events unmasked an exception's frame shows IF set and a mask of 0; a handler that masks events runs masked."""
    unmask = f"mov eax,[{INFO}]; {map_page(DATA, 0, 0x63).replace(_p2m_entry(0), _shared_entry())}; mov byte ptr [{DATA + 1}],0"
    table = struct.pack("<BBHI", 3, 4, 0xE019, _handler(3)) + bytes(8)
    kept = f"{_SAVE_FRAME}; movzx eax,byte ptr [{DATA + 1}]; mov [{LOG + 24}],eax"
    vm = run({CODE: f"{call(0, TABLE)}; {unmask}; int3; {FINISH}", TABLE: table, _handler(3): f"{kept}; {FINISH}"})
    _, cs, flags = log(vm, 3)
    assert (cs, flags & 0x200) == (0xE019, 0x200)
    assert log(vm, 7)[6] == 1


def _p2m_entry(page: int) -> str:
    """What `map_page` loads for a page of the guest's."""
    return f"mov ecx,[ecx+68]; mov ecx,[ecx+{4 * page}]; shl ecx,12"


def _shared_entry() -> str:
    return "mov ecx,[ecx+36]"


def test_user_mode_and_back() -> None:
    """IRET to CPL 3 natively; a system call on the stack of stack_switch; the user's frame has SS and ESP; and back again."""
    vm = run({
        CODE: _ENTER,
        TABLE: traps(_SYSTEM_CALL, _END),
        USER: f"mov eax,0x1234; int {_SYSTEM_CALL}; int {_END}",
        _handler(_SYSTEM_CALL): f"{_SAVE_FRAME}; {IRET}",
        _handler(_END): f"mov [{LOG + 24}],esp; {FINISH}",
    })  # fmt: skip
    eip, cs, flags, esp, ss = log(vm, 5)
    assert (eip, cs, esp, ss) == (USER + 7, 1 << 16 | 0xE02B, USER + 0x1800, 0xE033)
    assert flags & 0x200 == 0
    assert log(vm, 7)[6] == STACK - 20
    assert vm.stats.architectural["system call"] == 2


def test_iret_by_hypercall() -> None:
    """Through the hypercall page: EAX comes from the frame, and IF of the frame becomes the upcall mask."""
    iret = f"push 0xe033; push {USER + 0x1800}; push 0x202; push 0xe02b; push {USER}; mov eax,0x77; jmp {HYPERCALLS + 32 * 23}"
    vm = run({
        CODE: f"{call(0, TABLE)}; {call(3, 0xE021, STACK)}; {_USER_PAGES}; {iret}",
        TABLE: traps(_END),
        USER: f"int {_END}",
        _handler(_END): f"mov [{LOG + 24}],eax; {_SAVE_FRAME}; {FINISH}",
    })  # fmt: skip
    eip, cs, flags, esp, ss = log(vm, 5)
    assert (eip, cs, esp, ss) == (USER + 2, 0xE02B, USER + 0x1800, 0xE033)
    assert flags & 0x200
    assert log(vm, 7)[6] == 0x77


def test_int_needs_the_gates_level() -> None:
    """INT n from user mode through a gate for the kernel only is #GP with the vector in its error code."""
    vm = run({
        CODE: _ENTER,
        TABLE: traps(13, level=0)[:8] + traps(_SYSTEM_CALL, level=1),
        USER: f"int {_SYSTEM_CALL}",
        _handler(13): f"{_SAVE_FRAME}; {FINISH}",
    })  # fmt: skip
    error, eip, cs = log(vm, 3)
    assert (error, eip, cs & 0xFFFF) == (_SYSTEM_CALL << 3 | 2, USER, 0xE02B)


@pytest.mark.parametrize("instruction", ("int 0x82", "cli", "hlt", "mov eax,cr0", "in al,0x60", "out 0xf4,al", "mov cr3,eax", "lidt [eax]"))
def test_user_code_may_not(instruction: str) -> None:
    """Hypercalls and privileged instructions of user code are its #GP, at the instruction, and change nothing."""
    vm = run({
        CODE: _ENTER,
        TABLE: traps(13),
        USER: f"mov eax,2; {instruction}",
        _handler(13): f"{_SAVE_FRAME}; {FINISH}",
    })  # fmt: skip
    error, eip, cs = log(vm, 3)
    assert (error, eip, cs & 0xFFFF) == (0x82 << 3 | 2 if instruction == "int 0x82" else 0, USER + 5, 0xE02B)


@pytest.mark.parametrize("instruction", ("hlt", "in al,0x60", "out 0x20,al", "mov cr3,eax", "lgdt [eax]", "cli", "sti", "ltr ax"))
def test_the_kernel_may_not(instruction: str) -> None:
    """What the ABI does not emulate is #GP in the guest's kernel too: it owns no device and no control register."""
    handler = f"{_SAVE_FRAME}; mov dword ptr [{LOG + 32}],1; {FINISH}"
    vm = run({CODE: f"{call(0, TABLE)}; {instruction}; {FINISH}", TABLE: traps(13), _handler(13): handler})
    assert log(vm, 9)[8] == 1
    assert log(vm, 1) == [0]


def test_a_control_register_that_does_not_exist_is_undefined() -> None:
    """CR1 is #UD at any level, not the #GP of one that may not be read."""
    read = ".byte 0x0f,0x20,0xc8"
    for code, user, eip in ((f"{call(0, TABLE)}; mov ecx,behind; behind: {read}", "nop", None), (_ENTER, f"nop; {read}", USER + 1)):
        vm = run({CODE: code, TABLE: traps(6, 13), USER: user, _handler(6): f"{_SAVE_FRAME}; mov [{LOG + 32}],ecx; {FINISH}"})
        at, *_ = log(vm, 1)
        assert at == (eip or log(vm, 9)[8])


def test_ports_that_were_granted() -> None:
    """With IOPL 1 the kernel uses the ports that are its own; any other is #GP all the same."""
    iopl = f"mov dword ptr [{DATA}],1; {call(33, 6, DATA)}"
    vm = pv_vm({CODE: f"{call(0, TABLE)}; {iopl}; out 0x70,al", TABLE: traps(13), _handler(13): "mov al,7; out 0xf4,al"})
    stop = vm.run(5)
    assert (stop.why, stop.value) == (End.REPORTED, 7), describe(vm, stop)


def test_emulated_instructions() -> None:
    """RDTSC gives virtual nanoseconds, CLTS and reads of CR0 work, and the forced CPUID names the VMM."""
    forced = "mov eax,0x40000000; .byte 0x0f,0x0b,0x78,0x65,0x6e,0x0f,0xa2"
    code = f"rdtsc; mov [{LOG}],eax; mov [{LOG + 4}],edx; clts; mov eax,cr0; mov [{LOG + 8}],eax"
    vm = run({CODE: f"{code}; {forced}; mov [{LOG + 12}],ebx; mov [{LOG + 16}],ecx; mov eax,1; cpuid; mov [{LOG + 20}],edx; {FINISH}"})
    low, high, cr0, ebx, ecx, features = log(vm, 6)
    assert 0 < high << 32 | low <= domain_of(vm).clock.now()
    assert cr0 & 0x80000009 == 0x80000001
    assert struct.pack("<2I", ebx, ecx) == b"XenVMMXe"
    assert features & 1 << 6, "PAE"
    assert not features & (1 << 13 | 1 << 3), "neither global pages nor large ones"


def test_task_switched() -> None:
    """fpu_taskswitch makes the next FPU instruction #NM, and the flag is clear again in its handler."""
    code = f"{call(0, TABLE)}; {call(5, 1)}; fninit; mov dword ptr [{LOG}],7; {FINISH}"
    vm = run({CODE: code, TABLE: traps(7), _handler(7): f"inc dword ptr [{LOG + 4}]; {IRET}"})
    assert log(vm, 2) == [7, 1]


def test_a_call_gate_into_the_kernel() -> None:
    """A far call of user code through a call gate in the guest's LDT: the frame is on the kernel's stack, and RETF goes back."""
    gate = _handler(5) & 0xFFFF | 0xE019 << 16 | (0xEC00 | _handler(5) & 0xFFFF0000) << 32
    remap = f"mov ecx,[{INFO}]; mov ecx,[ecx+68]; mov ecx,[ecx+{4 * page_of(DATA)}]; shl ecx,12; or ecx,0x61; {call(14, DATA, 'ecx', 0, 2)}"
    table = f"{_store(LOG + 128, 13, DATA, 1)}; {call(26, LOG + 128, 1, 0, 0x7FF0, log_at=8)}"
    vm = run({
        CODE: f"{call(0, TABLE)}; {call(3, 0xE021, STACK)}; {_USER_PAGES}; {remap}; {table}; {_TO_USER}",
        TABLE: traps(_END, 13),
        DATA: struct.pack("<Q", gate),
        USER: f".byte 0x9a; .long 0; .short 7; int {_END}",
        _handler(5): f"{_SAVE_FRAME}; .byte 0xcb",
        _handler(_END): f"mov dword ptr [{LOG + 36}],1; {FINISH}",
        _handler(13): f"{_SAVE_FRAME}; {FINISH}",
    })  # fmt: skip
    assert log(vm, 4) == [USER + 7, 0xE02B, USER + 0x1800, 0xE033]
    assert log(vm, 10)[8:] == [0, 1]


@pytest.mark.parametrize("transfer", (".byte 0x9a; .long 0; .short 0x0007", ".byte 0xea; .long 0; .short 7", "jmp_indirect", "call_indirect"))
def test_call_gates_within_the_kernel(transfer: str) -> None:
    """Far calls and jumps of the kernel through a gate in its LDT, direct and by memory: only a call leaves a return address."""
    gate = _handler(5) & 0xFFFF | 0xE019 << 16 | (0xEC00 | _handler(5) & 0xFFFF0000) << 32
    pointer = f"mov dword ptr [{LOG + 144}],0; mov dword ptr [{LOG + 148}],7; mov ebx,{LOG + 144}; "
    code = {"jmp_indirect": pointer + ".byte 0xff,0x2b", "call_indirect": pointer + ".byte 0xff,0x1b"}.get(transfer, transfer)
    remap = f"mov ecx,[{INFO}]; mov ecx,[ecx+68]; mov ecx,[ecx+{4 * page_of(DATA)}]; shl ecx,12; or ecx,0x61; {call(14, DATA, 'ecx', 0, 2)}"
    table = f"{_store(LOG + 128, 13, DATA, 1)}; {call(26, LOG + 128, 1, 0, 0x7FF0)}"
    vm = run({
        CODE: f"{call(0, TABLE)}; {remap}; {table}; {code}; nop",
        TABLE: traps(13),
        DATA: struct.pack("<Q", gate),
        _handler(5): f"mov [{LOG}],esp; mov eax,[esp]; mov [{LOG + 4}],eax; mov eax,[esp+4]; mov [{LOG + 8}],eax; {FINISH}",
        _handler(13): f"{_SAVE_FRAME}; {FINISH}",
    })  # fmt: skip
    esp, eip, cs = log(vm, 3)
    if "jmp" in transfer or "0xea" in transfer:
        assert esp == STACK
    else:
        assert (esp, cs & 0xFFFF) == (STACK - 8, 0xE019)
        assert domain_of(vm).mmu.read(eip, 1) == b"\x90"


def test_events() -> None:
    """An event that the guest sends itself over an IPI channel: one upcall, masked in its handler, the pending bits set; block returns for it."""
    bind = f"{call(32, 7, LOG + 64)}"
    send = f"mov eax,[{LOG + 68}]; mov [{LOG + 72}],eax; {call(32, 4, LOG + 72, log_at=0)}"
    shared = map_page(DATA, 0, 0x63).replace(_p2m_entry(0), _shared_entry())
    seen = f"mov eax,[{DATA}]; mov [{LOG + 8}],eax; mov eax,[{DATA + 2048}]; mov [{LOG + 12}],eax"
    vm = run({
        CODE: f"{call(4, 0xE019, _handler(2), 0xE019, 0)}; {shared}; {bind}; {send}; {call(29, 1, 0, log_at=4)}; {FINISH}",
        _handler(2): f"push eax; inc dword ptr [{LOG + 4}]; {seen}; mov byte ptr [{DATA}],0; pop eax; {IRET}",
    })  # fmt: skip
    sent, upcalls, state, pending, blocked = log(vm, 5)
    port = log(vm, 18)[17]
    assert (sent, upcalls, blocked) == (0, 1, 0)
    assert state & 0xFFFF == 0x0101
    assert pending == 1 << port


def test_the_timer_wakes_a_blocked_guest() -> None:
    """set_timer_op a few milliseconds ahead, then block: it comes back with the timer's event, not before its time."""
    bind = f"{call(32, 1, LOG + 64)}"  # virtual interrupt 0 on CPU 0
    shared = map_page(DATA, 0, 0x63).replace(_p2m_entry(0), _shared_entry())
    stop_period = call(24, 7, 0, 0)
    timer = f"rdtsc; mov [{LOG + 8}],eax; add eax,3000000; mov ebx,eax; mov ecx,edx; mov eax,15; int 0x82"
    block = f"{call(29, 1, 0)}; rdtsc; mov [{LOG + 12}],eax"
    vm = run({
        CODE: f"{call(4, 0xE019, _handler(2), 0xE019, 0)}; {shared}; {bind}; {stop_period}; {timer}; {block}; {FINISH}",
        _handler(2): f"inc dword ptr [{LOG + 4}]; mov byte ptr [{DATA}],0; {IRET}",
    })  # fmt: skip
    _, upcalls, before, after = log(vm, 4)
    assert upcalls == 1
    assert after - before & 0xFFFFFFFF >= 3_000_000


def test_multicall() -> None:
    """A list of hypercalls, each with its own result."""
    entry = struct.pack("<8I", 17, 99, 0, 0, 0, 0, 0, 0) + struct.pack("<8I", 31, 99, 0, 0, 0, 0, 0, 0) + struct.pack("<8I", 5, 99, 0, 0, 0, 0, 0, 0)
    vm = run({CODE: f"{call(13, DATA, 3, log_at=0)}; {FINISH}", DATA: entry})
    results = struct.unpack("<24I", domain_of(vm).mmu.read(DATA, 96))[1::8]
    assert log(vm, 1) == [0]
    assert results == (4 << 16 | 17, _ENOSYS, 0)


def test_wild_pointers() -> None:
    """A wild address in any argument of any hypercall gives an error of the ABI and harms nobody."""
    numbers = [n for n in range(40) if n not in (6, 23, 29)]
    asked = [(n, c) for n in (12, 20, 24, 30, 32, 33, 17, 18) for c in range(13) if (n, c) not in ((18, 1), (24, 2), (24, 11))]  # those end it
    for wild in (0, 0x10, 0xFFFFFFF0, 0xF5800000, 0x7FFFFFFD):
        calls = "; ".join(call(n, wild, wild, wild, wild, wild, log_at=n) for n in numbers)
        commands = "; ".join(call(n, c, wild, wild, wild, wild) for n, c in asked)
        code = f"{call(0, 0)}; {calls}; mov eax,{LOG}; jmp next; next: nop; {commands}; {FINISH}"
        vm = run({CODE: code})
        assert vm.stats.refused["a wild address"] > 10


def test_an_exception_without_a_handler_is_the_end() -> None:
    """The run ends with what happened; nothing is raised."""
    vm = pv_vm({CODE: "mov eax,[0x10]"})
    stop = vm.run(5)
    assert stop.why is End.DIED
    assert stop.reason == "exception 14 without a handler (error code 0x0)", describe(vm, stop)


@pytest.mark.parametrize("esp", (0, 0x10, 0xF5800010, 0xFFFFFFFC))
def test_an_exception_without_a_stack_is_the_end(esp: int) -> None:
    """A stack where nothing may be written: so does this."""
    vm = pv_vm({CODE: f"{call(0, TABLE)}; mov esp,{esp}; int3", TABLE: traps(3), _handler(3): FINISH})
    stop = vm.run(5)
    assert stop.why is End.DIED, describe(vm, stop)
    assert "no stack" in stop.reason


def test_code_that_is_rewritten_runs_anew() -> None:
    """A page that is written and executed by turns, through one mapping and through another, always runs what stands there."""
    alias = map_page(BASE + 0x30000, page_of(DATA), 0x63)
    part = "mov byte ptr [{at}+1],{n}; call ebx; add [{log}],eax"
    lines = [part.format(at=hex(DATA if n % 2 else BASE + 0x30000), n=n, log=LOG) for n in range(1, 9)]
    vm = run({CODE: f"{alias}; mov ebx,{DATA}; {'; '.join(lines)}; {FINISH}", DATA: "mov eax,0; ret"})
    assert log(vm, 1) == [sum(range(1, 9))]


def test_code_through_a_read_only_alias() -> None:
    """The same where the mapping that is executed is read-only and the one that is written is another."""
    where = BASE + 0x30000
    alias = map_page(where, page_of(DATA), 0x61)
    lines = [f"mov byte ptr [{DATA + 1}],{n}; call ebx; add [{LOG}],eax" for n in range(1, 9)]
    vm = run({CODE: f"{alias}; mov ebx,{where}; {'; '.join(lines)}; {FINISH}", DATA: "mov eax,0; ret"})
    assert log(vm, 1) == [sum(range(1, 9))]


def test_code_in_a_page_that_is_used_again() -> None:
    """Executed by one mapping, which goes; written by another, which goes too; executed again: all of it is new, not only what was written first."""
    read, write = BASE + 0x180000, BASE + 0x181000
    page, places = page_of(DATA), (0, 0x100, 0x200)

    def calls(at: int) -> str:
        return "; ".join(f"mov eax,{read + place}; call eax; mov [{LOG + 4 * (at + n)}],eax" for n, place in enumerate(places))

    stores = "; ".join(f"mov dword ptr [{write + place + 1}],{20 + n}" for n, place in enumerate(places))
    unmap = [call(14, gva, 0, 0, 2) for gva in (DATA, read, write)]
    first = f"{unmap[0]}; {map_page(read, page, 0x61)}; {calls(0)}; {unmap[1]}"
    again = f"{map_page(write, page, 0x63)}; {stores}; {unmap[2]}; {map_page(read, page, 0x61)}; {calls(3)}"
    body = b"".join(bytes((0xB8, 10 + n, 0, 0, 0, 0xC3)).ljust(0x100, b"\xcc") for n in range(3))
    assert log(run({CODE: f"{first}; {again}; {FINISH}", DATA: body}), 6) == [10, 11, 12, 20, 21, 22]


def leaf_table() -> int:
    """Where a guest sees its table for the first 2 MiB: as every page table, mapped read-only."""
    start = pv_vm({CODE: "nop"}).start
    assert start is not None and start.domain is not None
    return BASE + start.domain.tables[2] * 0x1000


_STORES = {
    "mov": "mov dword ptr [ebx+4],0; mov [ebx],ecx",
    "xchg": "xchg [ebx],ecx",
    "cmpxchg8b": "mov edi,ecx; mov eax,[ebx]; mov edx,[ebx+4]; mov ebp,ebx; mov ebx,edi; xor ecx,ecx; .byte 0xf0,0x0f,0xc7,0x4d,0",
    "and": "mov [ebx],ecx; and dword ptr [ebx],0xffffffff",
    "stosd": "mov edi,ebx; mov eax,ecx; stosd; xor eax,eax; stosd",
}


@pytest.mark.parametrize("name", _STORES)
def test_stores_into_page_tables(name: str) -> None:
    """Any instruction that stores a valid entry into a lowest-level table does it; the new mapping is there at once behind a flush."""
    page = 0x30
    entry = f"mov ecx,[{INFO}]; mov ecx,[ecx+68]; mov ecx,[ecx+{4 * page_of(DATA)}]; shl ecx,12; or ecx,0x63"
    code = f"{entry}; mov ebx,{leaf_table() + 8 * page}; {_STORES[name]}; {call(26, TABLE, 1, 0, 0x7FF0)}"
    vm = run({CODE: f"{code}; mov eax,[{BASE + page * 0x1000}]; mov [{LOG}],eax; {FINISH}", TABLE: struct.pack("<3I", 6, 0, 0),
              DATA: struct.pack("<I", 0x600DF00D)}, strict=True)
    assert log(vm, 1) == [0x600DF00D]
    assert vm.stats.architectural["page-table store"] > 0


def test_a_store_of_an_invalid_entry_is_a_page_fault() -> None:
    """At the instruction, which has had no effect, registers included; with TF no debug exception follows it, but one does follow a valid store."""
    at = leaf_table() + 8 * 0x30
    trap_flag = "pushfd; or dword ptr [esp],0x100; popfd"
    code = f"mov ebx,{at}; mov ecx,0x7fffff03; {trap_flag}; xchg [ebx],ecx; nop; mov dword ptr [{LOG + 40}],1; {FINISH}"
    vm = run({
        CODE: f"{call(0, TABLE)}; {code}",
        TABLE: traps(1, 14),
        _handler(1): f"inc dword ptr [{LOG + 44}]; {IRET}",
        _handler(14): f"{_SAVE_FRAME}; mov [{LOG + 24}],ecx; mov eax,[{LOG + 44}]; mov [{LOG + 28}],eax; {FINISH}",
    })  # fmt: skip
    error, eip, cs = log(vm, 3)
    assert (error & 7, cs & 0xFFFF) == (3, 0xE019)
    assert domain_of(vm).mmu.read(eip, 2) == b"\x87\x0b"
    assert log(vm, 11)[6:8] == [0x7FFFFF03, 0]
    assert log(vm, 11)[10] == 0
    good = f"mov ebx,{at}; xor ecx,ecx; {trap_flag}; xchg [ebx],ecx; nop; pushfd; and dword ptr [esp],0xfffffeff; popfd; {FINISH}"
    vm = run({CODE: f"{call(0, TABLE)}; {good}", TABLE: traps(1), _handler(1): f"inc dword ptr [{LOG + 44}]; {IRET}"})
    assert log(vm, 12)[11] == 5


def test_an_observer_sees_hypercalls() -> None:
    """Somebody who watches the monitor sees each hypercall before it is done, with the vCPU as the guest left it."""
    vm = pv_vm({CODE: f"{call(17, 0)}; {call(5, 0)}; {FINISH}"})
    seen: list[tuple[str, int, int]] = []
    observe(vm, lambda exit_, vcpu: seen.append((type(exit_).__name__, vcpu.register(0), vcpu.cpl)))
    vm.run(5)
    assert seen == [("Hypercall", 17, 1), ("Hypercall", 5, 1), ("Hypercall", 6, 1)]
