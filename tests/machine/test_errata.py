"""One test for each erratum of the CPU that concerns binary translation: what the machine and the back-end do about it holds.

The numbers are those of the notes on the CPU's measured behaviour; docs/QUIRKS.md has the table. Errata 4 and 7 concern its
virtualization extension, which binary translation does not use; 16 is a quirk that stays.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from unicorn import UC_HOOK_INSN, x86_const

from tests.machine.host import ABSENT, CODE, DATA, Host
from vmm.cpu_state import Cpu
from vmm.machine import Machine, MachineError

INCREMENTS = 5_000_000  # 40 ms


@contextmanager
def kicked(machine: Machine, seconds: float = 0.0003) -> Iterator[None]:
    """A thread that kicks the machine all the time."""
    done = threading.Event()

    def kick() -> None:
        while not done.wait(seconds):
            machine.kick()

    thread = threading.Thread(target=kick)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_1_every_page_fault_is_vector_14() -> None:
    """The second and third fault come as #PF with their own address, error code and EIP: no double fault, no silent stop."""
    host = Host()
    machine, state, seen = host.machine, host.machine.state, []

    def fault(vector: int) -> None:
        machine.clear_event()
        seen.append((vector, state[Cpu.CR2], state[machine.error_code], state[Cpu.EIP]))
        state[Cpu.EIP] += 2

    machine.on_interrupt = fault
    host.start(f"mov ebx,{ABSENT}; mov [ebx],eax; mov eax,[ebx]; mov [ebx],ecx; out 0x80,al")
    host.run_until_port()
    first = CODE + 5
    assert seen == [(14, ABSENT, 2, first), (14, ABSENT, 0, first + 2), (14, ABSENT, 2, first + 4)]


def test_2_a_fault_behind_int_has_its_own_eip() -> None:
    """INT n is told from a fault, and does not spoil the EIP of the fault behind it."""
    host = Host()
    machine, state, seen = host.machine, host.machine.state, []

    def event(vector: int) -> None:
        software = state[machine.is_int]
        machine.clear_event()
        seen.append((vector, bool(software), state[Cpu.EIP]))
        if not software:
            state[Cpu.EIP] += 2

    machine.on_interrupt = event
    host.start(f"mov ebx,{ABSENT}; int 0x40; mov [ebx],eax; int 0x41; div ecx; mov [ebx],eax; out 0x80,al")
    machine.state[Cpu.ECX] = 0
    host.run_until_port()
    at = CODE + 5
    assert seen == [(0x40, True, at + 2), (14, False, at + 2), (0x41, True, at + 6), (0, False, at + 6), (14, False, at + 8)]


def stops_in_five_million_increments() -> int:
    """Increments memory while a thread stops the machine every 0.3 ms: how many stops took effect. None is lost or doubled."""
    host = Host()
    machine, runs = host.machine, 0
    assert machine.precise_kicks
    done: list[int] = []

    def port(number: int, size: int, value: int | None) -> int:
        done.append(number)
        machine.stop()
        return 0

    machine.on_port = port
    host.start(f"mov ecx,{INCREMENTS}; mov esi,{DATA}; l: add dword ptr [esi],1; dec ecx; jnz l; out 0x80,al")
    with kicked(machine):
        while not done:
            machine.run()
            runs += 1
    assert machine.words[DATA // 4] == INCREMENTS
    return runs - 1


def test_3_no_read_modify_write_is_lost_or_doubled_under_kicks() -> None:
    """Every stop takes effect between blocks. On a busy machine the thread does not get its turn in each round: so there are several."""
    stops = 0
    for _ in range(40):
        stops += stops_in_five_million_increments()
        if stops > 2:
            return
    raise AssertionError("the kicks had no effect: nothing was tested")


def test_3_without_precise_kicks_a_run_ends_by_its_hooks() -> None:
    """The fall-back: nobody stops the machine from outside; a run ends where a handler says so, or after so many instructions, exactly."""
    host = Host()
    machine, runs, ports = host.machine, 0, []
    machine.precise_kicks = False

    def port(number: int, size: int, value: int | None) -> int:
        ports.append(number)
        machine.stop()
        return 0

    machine.on_port = port
    host.start(f"mov ecx,1000000; mov esi,{DATA}; l: add dword ptr [esi],1; dec ecx; jnz l; out 0x80,al; jmp n; n: out 0x81,al")
    with kicked(machine):
        while len(ports) < 2:
            machine.run()
            runs += 1
    assert (ports, machine.words[DATA // 4]) == ([0x80, 0x81], 1_000_000)
    assert runs > 10, "three million instructions went by in a few runs"


def test_8_address_0_ends_no_run() -> None:
    """A jump to address 0 goes on there, and CR2 stays."""
    host = Host()
    host.machine.state[Cpu.CR2] = 0x1234
    host.machine.memory[0:5] = bytes.fromhex("40e680ebfe")  # inc eax; out 80h,al; jmp to itself
    host.start("xor eax,eax; xor ebx,ebx; jmp ebx")
    host.run_until_port()
    assert (host.machine.state[Cpu.EAX], host.machine.state[Cpu.CR2]) == (1, 0x1234)


class Mishap(Exception):
    """Something of ours that goes wrong."""


@pytest.mark.parametrize("failure", (Mishap, KeyboardInterrupt, SystemExit))
@pytest.mark.parametrize(
    ("handler", "code"),
    (("on_interrupt", "int 3"), ("on_port", "in al,0x10"), ("on_port", "out 0x10,al"), ("on_cpuid", "cpuid"), ("on_invalid", "ud2")),
)
def test_9_what_a_handler_raises_surfaces(failure: type[BaseException], handler: str, code: str) -> None:
    """An exception in any handler ends the run and comes out of it; the machine can run again."""
    host = Host()
    machine = host.machine

    def fail(*arguments: object) -> int:
        raise failure

    before = getattr(machine, handler)
    setattr(machine, handler, fail)
    host.start(f"{code}; nop; l: jmp l")
    with pytest.raises(failure):
        machine.run()
    setattr(machine, handler, before)
    machine.clear_event()
    host.start("out 0x80,al")
    host.run_until_port()


def test_9_the_engine_s_own_errors_surface() -> None:
    """An exit that nothing was set to handle is an error of ours, with its vector."""
    host = Host()
    host.start("int 0x55")
    with pytest.raises(MachineError, match="vector 85"):
        host.machine.run()


def test_10_flush_tlb_forgets_translations() -> None:
    """An entry changed in memory is seen behind `flush_tlb`, out of a handler as well."""
    host = Host()
    machine, reads = host.machine, []
    machine.words[DATA // 4], machine.words[DATA // 4 + 1024] = 1, 2

    def port(number: int, size: int, value: int | None) -> int:
        if number == 0x80:
            machine.stop()
        else:
            reads.append(value)
            machine.quads[host.entry(DATA)] += 4096
            machine.flush_tlb()
        return 0

    machine.on_port = port
    host.start(f"mov eax,[{DATA}]; out 0x81,eax; mov eax,[{DATA}]; out 0x82,eax; out 0x80,al")
    machine.run()
    assert reads == [1, 2]


def test_15_no_cpuid_is_lost_under_stops() -> None:
    """CPUID reaches its handler each time while stops are pending all the time."""
    host = Host()
    machine, count = host.machine, 0

    def cpuid() -> bool:
        nonlocal count
        count += 1
        return True

    machine.on_cpuid = cpuid
    host.start("mov esi,100000; l: cpuid; dec esi; jnz l; out 0x80,al")
    with kicked(machine, 0.0002):
        host.run_until_port()
    assert count == 100_000


def test_15_the_hook_of_cpuid_is_added_before_those_of_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order in which instruction hooks are added is what the work-around consists of."""
    order: list[str] = []
    add: Callable[..., object] = Machine._hook

    def note(self: Machine, kind: int, callback: object, instruction: int) -> object:
        order.append(names.get(instruction, "") if kind == UC_HOOK_INSN else "")
        return add(self, kind, callback, instruction)

    names = {x86_const.UC_X86_INS_CPUID: "cpuid", x86_const.UC_X86_INS_IN: "in", x86_const.UC_X86_INS_OUT: "out"}
    monkeypatch.setattr(Machine, "_hook", note)
    Machine(1 << 20)
    assert order.index("cpuid") < min(order.index("in"), order.index("out"))
