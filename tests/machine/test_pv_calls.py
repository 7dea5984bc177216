"""Hypercalls that no bundled kernel uses: the failsafe callback, NMIs, the virtual CPU's information, exchanged memory, the guest's own grants."""

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
    LOG,
    STACK,
    TABLE,
    call,
    describe,
    domain_of,
    log,
    map_page,
    page_of,
    pv_vm,
    run,
)
from vmm.exits import End
from vmm.mmu.frames import Kind
from vmm.vm import Vm

_HANDLER = HANDLERS + 0x800
_SAVE = "; ".join(f"mov eax,[esp+{4 * n}]; mov [{LOG + 4 * n}],eax" for n in range(9))
_EBUSY, _EINVAL, _EPERM, _EEXIST, _ENOSYS = (-error & 0xFFFFFFFF for error in (16, 22, 1, 17, 38))


def _store(at: int, *values: int | str) -> str:
    return "; ".join(f"mov dword ptr [{at + 4 * n}],{value}" for n, value in enumerate(values))


# -- failsafe ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("selector", "stack"), ((0x33, 0xE033), (0xE02B, 0x3B), (0xE02B, 0xE021)), ids=("code", "stack", "kernel's stack"))
def test_an_iret_that_cannot_be(selector: int, stack: int) -> None:
    """The failsafe callback gets data segments and the whole frame, on the stack of stack_switch, with EAX loaded and the mask as IF there."""
    iret = f"push {stack}; push 0x12345678; push 0x202; push {selector}; push 0x87654; mov eax,0x77; jmp {HYPERCALLS + 32 * 23}"
    start = f"{call(4, 0xE019, 0, 0xE019, _HANDLER)}; {call(3, 0xE021, STACK - 0x800)}; mov ax,0xe033; mov es,ax; xor eax,eax; mov fs,ax; mov gs,ax"
    vm = run({CODE: f"{start}; {iret}", _HANDLER: f"mov [{LOG + 40}],eax; mov [{LOG + 36}],esp; {_SAVE}; {FINISH}"})
    assert log(vm, 11) == [0xE021, 0xE033, 0, 0, 0x87654, selector, 0x202, 0x12345678, stack, STACK - 0x800 - 36, 0x77]


def test_an_iret_within_the_kernel_that_cannot_be() -> None:
    """Its frame has no stack, and lies where the frame of IRET lay; IF clear there masks events."""
    iret = f"push 2; push 0x29; push 0x87654; jmp {HYPERCALLS + 32 * 23}"
    vm = run({CODE: f"{call(4, 0xE019, 0, 0xE019, _HANDLER)}; {iret}", _HANDLER: f"mov [{LOG + 36}],esp; {_SAVE}; {FINISH}"})
    assert log(vm, 7)[4:] == [0x87654, 0x10029, 2]
    assert log(vm, 10)[9] == STACK - 28


def test_an_iret_that_cannot_be_without_a_callback_is_the_end() -> None:
    """With a reason, as for any event that cannot be delivered."""
    vm = pv_vm({CODE: f"push 0xe033; push 0; push 0x202; push 0x33; push 0; jmp {HYPERCALLS + 32 * 23}"})
    stop = vm.run(5)
    assert stop.why is End.DIED and "failsafe" in stop.reason, describe(vm, stop)


# -- non-maskable interrupts, callbacks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ("nmi_op", "callback_op"))
def test_an_nmi(how: str) -> None:
    """The guest's own request: its handler runs masked, a second one waits for its IRET by hypercall, and the code goes on behind each."""
    register = call(28, 0, DATA) if how == "nmi_op" else call(30, 0, DATA)
    place = (str(_HANDLER),) if how == "nmi_op" else ("4", "0xe019", str(_HANDLER))
    mask = f"mov eax,[{INFO}]; {map_page(DATA + 0x1000, 0, 0x63)}"
    again = f"cmp dword ptr [{LOG}],1; jne done; {call(24, 11, 0, 0, log_at=2)}; mov eax,[{LOG}]; mov [{LOG + 12}],eax; done:"
    handler = f"inc dword ptr [{LOG}]; mov eax,[esp+4]; mov [{LOG + 4}],eax; {again} pop eax; pop ecx; pop edx; push edx; push ecx; push eax; nop"
    code = f"{mask}; {_store(DATA, *place)}; {register}; {call(24, 11, 0, 0, log_at=4)}; mov dword ptr [{LOG + 20}],7; {FINISH}"
    vm = run({CODE: code, _HANDLER: f"{handler}; mov eax,0; jmp {HYPERCALLS + 32 * 23}"})
    count, selector, result, seen, outer, behind = log(vm, 6)
    assert (count, result, seen, outer, behind) == (2, 0, 1, 0, 7)
    assert selector & 0xFFFF == 0xE019
    assert vm.stats.hypercalls["iret"] == 2


def test_an_nmi_without_a_handler_is_the_end() -> None:
    """As any exception without one; so is one whose handler was taken back."""
    for code in ("nop", f"{_store(DATA, _HANDLER)}; {call(28, 0, DATA)}; {call(28, 1)}"):
        stop = pv_vm({CODE: f"{code}; {call(24, 11, 0, 0)}"}).run(5)
        assert (stop.why, stop.reason[:11]) == (End.DIED, "exception 2")


def test_callbacks_that_cannot_be() -> None:
    """A system call's and SYSENTER's are not offered; what the VMM needs cannot be taken back; what is unknown is -ENOSYS."""
    kinds = "; ".join(f"{_store(DATA, kind, 0xE019, _HANDLER)}; {call(30, command, DATA, log_at=n)}" for n, (kind, command) in enumerate(
        ((2, 0), (3, 0), (5, 0), (0, 1), (1, 1), (4, 1), (0, 2))))  # fmt: skip
    vm = run({CODE: f"{kinds}; {FINISH}"})
    assert log(vm, 7) == [_ENOSYS] * 3 + [_EINVAL] * 2 + [0, _ENOSYS]


# -- the virtual CPU ----------------------------------------------------------------------------------------------------------------------


def test_the_virtual_cpus_information_moves() -> None:
    """Once, into a page of the guest's: what stood there before is there, all events are said to be pending, and masks and events are those there."""
    frame = f"mov ecx,[{INFO}]; mov ecx,[ecx+68]; mov ecx,[ecx+{4 * page_of(DATA)}]; mov [{TABLE}],ecx; {_store(TABLE + 4, 0, 0x100, 0)}"
    move = f"{frame}; {call(24, 10, 0, TABLE, log_at=0)}; {call(24, 10, 0, TABLE, log_at=1)}"
    seen = "; ".join(f"mov eax,[{DATA + at}]; mov [{LOG + 8 + 4 * n}],eax" for n, at in enumerate((0x100, 0x104, 0x138)))
    unmask = f"{call(4, 0xE019, _HANDLER, 0xE019, 0)}; mov byte ptr [{DATA + 0x101}],0; {call(17, 0)}; mov dword ptr [{LOG + 20}],1; {FINISH}"
    vm = run({CODE: f"{move}; {seen}; {unmask}", _HANDLER: f"mov al,[{DATA + 0x101}]; mov [{LOG + 24}],al; {FINISH}"})
    assert log(vm, 7) == [0, _EINVAL, 0x101, 0xFFFFFFFF, 1 << 31, 0, 1]
    domain = domain_of(vm)
    assert domain.frames.kind[vm.memory.frames[page_of(DATA)]] == Kind.WRITABLE


@pytest.mark.parametrize(("frame", "offset", "error"), ((0, 0xFC4, _EINVAL), (0, 2, _EINVAL), (1 << 20, 0, _EPERM)))
def test_it_does_not_move_anywhere(frame: int, offset: int, error: int) -> None:
    """Not over the end of a page, not out of step, not into a frame that is not the guest's."""
    vm = run({CODE: f"{_store(TABLE, frame, 0, offset, 0)}; {call(24, 10, 0, TABLE, log_at=0)}; {FINISH}"})
    assert log(vm, 1) == [error]


def test_run_states() -> None:
    """What get_runstate_info gives, and the area shows: running now, some time blocked, all of it the time since the start."""
    poll = f"{_store(TABLE + 16, 0, 0)}; rdtsc; add eax,2000000; adc edx,0; mov [{TABLE + 24}],eax; mov [{TABLE + 28}],edx; "
    poll += f"mov dword ptr [{TABLE + 16}],{TABLE}; {call(29, 3, TABLE + 16)}"
    area = f"{_store(TABLE + 32, DATA)}; {call(24, 5, 0, TABLE + 32, log_at=0)}"
    vm = run({CODE: f"{area}; {poll}; {call(24, 4, 0, LOG + 32, log_at=1)}; {FINISH}"}, icount=True)
    assert log(vm, 2) == [0, 0]
    mmu = domain_of(vm).mmu
    for at in (LOG + 32, DATA):
        state, since, *spent = struct.unpack("<I5Q", mmu.read(at, 44))
        assert state == 0
        assert 1_999_000 < spent[2] <= 2_000_000 and spent[1] == spent[3] == 0
        assert since <= sum(spent) <= domain_of(vm).clock.now()


def test_the_last_cpu_goes_down() -> None:
    """There is one CPU, which is up: it cannot be set up again, and without it there is no domain."""
    vm = pv_vm({CODE: f"{call(24, 0, 0, DATA, log_at=0)}; {call(24, 1, 0, 0, log_at=1)}; {call(24, 3, 0, 0, log_at=2)}; {call(24, 2, 0, 0)}"})
    stop = vm.run(5)
    assert stop.why is End.SHUTDOWN and log(vm, 3) == [_EEXIST, 0, 1], describe(vm, stop)


# -- memory --------------------------------------------------------------------------------------------------------------------------------


def _exchange_request(vm: Vm, frames: list[int], pages: list[int], order: int = 0) -> None:
    mmu = domain_of(vm).mmu
    mmu.write(DATA, struct.pack(f"<{len(frames)}I", *frames))
    mmu.write(DATA + 0x100, struct.pack(f"<{len(pages)}I", *pages))
    mmu.write(TABLE, struct.pack("<11I", DATA, len(frames), order, 0, 0x7FF0, DATA + 0x100, len(pages), order, 0, 0x7FF0, 0))


def test_an_exchange_of_memory() -> None:
    """Frames that nothing refers to for others: the list has their numbers, the machine-to-physical table their pages, and they are empty."""
    vm = pv_vm({CODE: f"{call(12, 11, TABLE, log_at=0)}; {FINISH}"})
    domain = domain_of(vm)
    frames = vm.memory.frames[1500:1503]
    for mfn in frames:
        vm.machine.memory[mfn << 12] = 1
    _exchange_request(vm, frames, [1500, 1501, 1502])
    vm.run(5)
    new = struct.unpack("<3I", domain.mmu.read(DATA + 0x100, 12))
    assert log(vm, 1) == [0]
    assert [domain.m2p[mfn] for mfn in new] == [1500, 1501, 1502] and all(domain.frames.owned[mfn] for mfn in new)
    assert not any(vm.machine.memory[mfn << 12] for mfn in new)
    assert struct.unpack("<I", domain.mmu.read(TABLE + 40, 4)) == (3,)


@pytest.mark.parametrize(("frames", "count", "order", "error", "done"), (
    ((1500, 600), 2, 0, _EBUSY, 1), ((1500, -1), 2, 0, _EPERM, 1), ((1500,), 2, 0, _EINVAL, 0), ((1500,), 1, 9, _EPERM, 0),
), ids=("in use", "foreign", "unlike", "large"))  # fmt: skip
def test_an_exchange_that_cannot_be(frames: tuple[int, ...], count: int, order: int, error: int, done: int) -> None:
    """Frames in use and foreign ones; other amounts; more than pages. Those before are exchanged, and how many is told."""
    vm = pv_vm({CODE: f"{call(12, 11, TABLE, log_at=0)}; {FINISH}"})
    _exchange_request(vm, [vm.memory.frames[page] if page >= 0 else 1 << 19 for page in frames], [1500] * count, order)
    vm.run(5)
    assert log(vm, 1) == [error]
    assert struct.unpack("<I", domain_of(vm).mmu.read(TABLE + 40, 4)) == (done,)


# -- grants --------------------------------------------------------------------------------------------------------------------------------

_WINDOW, _PAGE = BASE + 0x180000, 600


def _granting(body: str, grants: list[tuple[int, int, int]]) -> Vm:
    """A guest that runs `body`, with a grant table of {flags, domain, page}."""
    vm = pv_vm({CODE: f"{body}; {FINISH}"})
    domain = domain_of(vm)
    (table,), _ = domain.grants.table(1)
    entries = b"".join(struct.pack("<HHI", flags, to, vm.memory.frames[page] if page else 1 << 19) for flags, to, page in grants)
    vm.machine.memory[table << 12 : (table << 12) + len(entries)] = entries
    return vm


def _flags(vm: Vm, reference: int) -> int:
    return vm.machine.memory[(domain_of(vm).grants.frames_used[0] << 12) + 8 * reference]


@pytest.mark.parametrize("read_only", (False, True))
def test_the_guests_own_grants_can_be_mapped(read_only: bool) -> None:
    """Mapped, used, and taken away; the entry says that it is in use meanwhile. A handle works once."""
    use = f"mov eax,[{_WINDOW}]; mov [{LOG + 8}],eax" + ("" if read_only else f"; mov dword ptr [{_WINDOW + 4}],5")
    unmap = f"mov eax,[{DATA + 20}]; mov [{TABLE + 16}],eax; {call(20, 1, TABLE, 1, log_at=1)}"
    twice = f"mov eax,[{TABLE + 20}]; mov [{LOG + 12}],eax; {unmap}"
    vm = _granting(f"{call(20, 0, DATA, 1, log_at=0)}; {use}; {call(33, 0, 0)}; {unmap}; {twice}", [(1, 1, _PAGE)])
    mmu = domain_of(vm).mmu
    frame = vm.memory.frames[_PAGE]
    vm.machine.memory[frame << 12 : (frame << 12) + 4] = b"abcd"
    mmu.write(DATA, struct.pack("<QIIHhIQ", _WINDOW, 2 | (4 if read_only else 0), 0, 0x7FF0, 99, 0, 0))
    mmu.write(TABLE, struct.pack("<QQIh", _WINDOW, 0, 0, 99))
    in_use: list[int] = []
    handle = vm.monitor.handle
    vm.monitor.handle = lambda exit_: (in_use.append(_flags(vm, 0)), handle(exit_))[1]  # type: ignore[method-assign]
    stop = vm.run(5)
    assert stop.why is End.SHUTDOWN, describe(vm, stop)
    assert log(vm, 4) == [0, 0, int.from_bytes(b"abcd", "little"), 0]
    assert struct.unpack_from("<h", mmu.read(DATA, 32), 18) == (0,) and struct.unpack_from("<h", mmu.read(TABLE, 24), 20) == (-4,)
    assert (max(in_use), _flags(vm, 0)) == (1 | 8 | (0 if read_only else 16), 1)
    assert mmu.leaf_entry(_WINDOW)[1] == 0
    assert vm.machine.memory[(frame << 12) + 4] == (0 if read_only else 5)


@pytest.mark.parametrize(("request_", "status"), (
    ({"domain": 2}, -2), ({"reference": 1}, -3), ({"reference": 5000}, -3), ({"reference": 2}, -8), ({"reference": 3}, -8), ({"reference": 4}, -5),
    ({"flags": 1}, -3), ({"address": 0x7FFFF000}, -5), ({"address": 0xF5800000}, -5), ({"reference": 3, "flags": 6}, 0),
), ids=str)  # fmt: skip
def test_grants_that_cannot_be_mapped(request_: dict[str, int], status: int) -> None:
    """Of another domain; none; another's; read-only; of a foreign frame; for a device; where nothing can be mapped."""
    vm = _granting(call(20, 0, DATA, 1, log_at=0), [(1, 1, _PAGE), (0, 1, _PAGE), (1, 0, _PAGE), (5, 1, _PAGE), (1, 1, 0)])
    fields = {"address": _WINDOW, "flags": 2, "reference": 0, "domain": 1} | request_
    mmu = domain_of(vm).mmu
    mmu.write(DATA, struct.pack("<QIIHhIQ", fields["address"], fields["flags"], fields["reference"], fields["domain"], 99, 0, 0))
    vm.run(5)
    assert log(vm, 1) == [0]
    assert struct.unpack_from("<h", mmu.read(DATA, 32), 18) == (status,)


def test_copies() -> None:
    """From a frame to a grant and back; each request of a list has its own status, and those that fail do nothing."""
    vm = _granting(call(20, 5, DATA, 6, log_at=0), [(1, 1, _PAGE), (5, 1, _PAGE)])
    mmu, own = domain_of(vm).mmu, vm.memory.frames[_PAGE + 1]
    table = vm.memory.frames[vm.start.domain.top]  # type: ignore[union-attr]
    requests = (
        (own, 0x7FF0, 8, 0, 1, 16, 4, 2), (0, 1, 16, own, 0x7FF0, 100, 4, 1), (own, 0x7FF0, 4094, 0, 1, 0, 4, 2),
        (own, 0x7FF0, 0, 1, 1, 0, 4, 2), (own, 3, 0, 0, 1, 0, 4, 2), (own, 0x7FF0, 0, table, 0x7FF0, 0, 4, 0),
    )  # fmt: skip
    mmu.write(DATA, b"".join(struct.pack("<IHHIHHHHhxx", *request, 99) for request in requests))
    vm.machine.memory[(own << 12) + 8 : (own << 12) + 12] = b"word"
    vm.run(5)
    assert log(vm, 1) == [0]
    assert [struct.unpack_from("<h", mmu.read(DATA + 24 * n, 24), 20)[0] for n in range(6)] == [0, 0, -10, -8, -2, -9]
    assert bytes(vm.machine.memory[(own << 12) + 100 : (own << 12) + 104]) == b"word"


def test_versions_and_sizes_of_the_grant_table() -> None:
    """Version 1 only; as many pages as were asked for."""
    code = f"{_store(DATA, 2)}; {call(20, 8, DATA, 1, log_at=0)}; {_store(DATA, 1)}; {call(20, 8, DATA, 1, log_at=1)}; {_store(DATA, 0x7FF0)}"
    vm = _granting(f"{code}; {call(20, 10, DATA, 1, log_at=2)}; {_store(DATA + 8, 0x7FF0)}; {call(20, 6, DATA + 8, 1, log_at=3)}", [])
    vm.run(5)
    assert log(vm, 4) == [_EINVAL, 0, 0, 0]
    assert struct.unpack("<2I", domain_of(vm).mmu.read(DATA, 8)) == (0x7FF0, 1)
    assert struct.unpack("<3Ih", domain_of(vm).mmu.read(DATA + 8, 14)) == (0x7FF0, 1, 32, 0)
