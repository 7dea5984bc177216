"""The counts of `vmm dump --hot` are exact: rounds of loops, whatever interrupts them, and the exits that the cache saves."""

import struct
import tempfile
from collections import Counter

import pytest

from bt.census import Kind, kinds
from guest_kernels import kernels
from tests.machine import flat
from tests.machine.flat import ENTRY, LIDT, gate, pack, quads
from tools.dump.build import Builder
from tools.dump.heat import LARGE, Heat
from vmm import vm as whole
from vmm.backends.bt import BtOptions

IDT, POINTER, HANDLER, DATA = 0x3000, 0x2000, 0x5000, 0x4000
TIMER = """
    mov al, 0x11; out 0x20, al; mov al, 0x20; out 0x21, al; mov al, 4; out 0x21, al; mov al, 1; out 0x21, al; mov al, 0xfe; out 0x21, al
    mov al, 0x34; out 0x43, al; mov al, 0; out 0x40, al; mov al, 4; out 0x40, al
"""
"""The master 8259 lets line 0 through as vector 20h; the 8254 raises it every millisecond or so."""
ON_TIMER = f"push eax; mov al, 0x20; out 0x20, al; inc dword ptr [{DATA + 4}]; pop eax; iretd"
FINISH = f"{flat.FINISH}; hang: jmp hang"
SWITCHES = "pushfd; cli; nop; popfd"


def heated(parts: dict[int, str | bytes], options: BtOptions) -> tuple[whole.Vm, Heat]:
    """A VM with a guest in it that counts, and its counts."""
    made = flat.image(parts)
    vm = whole.Vm(whole.machine_for(4), memory_mib=4, options=options)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(made[ENTRY])
        file.flush()
        vm.load(file.name, address=ENTRY)
    for at, part in made.items():
        if at != ENTRY:
            vm.memory.write(at, part)
    heat = Heat()
    heat.attach(vm)
    return vm, heat


def counts(vm: whole.Vm, heat: Heat) -> Counter[int]:
    """Executions by guest EIP."""
    assert vm.start is not None
    found: Counter[int] = Counter()
    for block in Builder(vm.backend.caches, vm.start.symbols, heat).blocks():
        for line in block.lines:
            found[line.address] += line.count or 0
    return found


def addresses(vm: whole.Vm) -> list[tuple[int, str]]:
    """The instructions of the guest's first page of code, in order."""
    found = {
        instruction.address: instruction.text
        for cache in vm.backend.caches.values()
        for translation in cache.translations
        for instruction in translation.block.instructions
        if instruction.address >= ENTRY
    }
    return sorted(found.items())


@pytest.mark.parametrize("ring", [1, 3])
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "trap"])
def test_a_loop_under_interrupts(ring: int, cached: bool) -> None:
    """Each instruction of a loop counts its rounds, though the timer comes in at any of them; the handler's count the timer's interrupts."""
    rounds = 1_500_000 if cached else 6_000
    parts: dict[int, str | bytes] = {
        ENTRY: f"""
            {LIDT.format(POINTER)}; {TIMER} mov esp, 0x8000; sti
            mov ecx, {rounds}
            again: inc dword ptr [{DATA}]; add eax, 1; {SWITCHES}; xor edx, eax; dec ecx; jnz again
            cli; {FINISH}""",
        POINTER: struct.pack("<HI", 0x7FF, IDT),
        IDT: quads([0] * 32 + [gate(HANDLER)]),
        HANDLER: ON_TIMER,
    }
    vm, heat = heated(parts, BtOptions(ring=ring, stubs_in_cache=cached, counted=True))
    assert flat.finish(vm, 60) == 0
    done, ticks = flat.words(vm, DATA, 2)
    assert done == rounds and ticks > 5
    counted = counts(vm, heat)
    texts = [text for _, text in addresses(vm)]
    first = texts.index(f"inc dword ptr [{DATA:#x}]")
    for (address, text), expected in zip(addresses(vm), [1] * first + [rounds] * 9 + [1] * 3, strict=False):
        assert counted[address] == expected, (hex(address), text)
    assert {counted[address] for address in counted if address < ENTRY} == {ticks}


def test_faults_do_not_count_twice() -> None:
    """A store that faults is carried out once the handler has cured it: hidden faults, and one of the guest's own for each page."""
    pages = 64
    parts: dict[int, str | bytes] = {
        # Paging on over two tables: the first megabytes as they are, and `pages` pages at 400000h that are absent until the handler maps each.
        ENTRY: f"""
            {LIDT.format(POINTER)}; mov esp, 0x8000
            mov eax, 0x10000; mov cr3, eax; mov eax, cr0; or eax, 0x80000000; mov cr0, eax; jmp on; on:
            mov ebx, 0x400000; mov ecx, {pages}
            again: mov edx, ebx; mov dword ptr [ebx], ecx; lea ebx, [ebx + 0x1000]; dec ecx; jnz again
            {FINISH}""",
        POINTER: struct.pack("<HI", 0x7FF, IDT),
        IDT: quads([0] * 14 + [gate(HANDLER)]),
        HANDLER: """
            push eax; push edx; mov eax, cr2; mov edx, eax; shr edx, 12; and edx, 0x3ff; and eax, 0x3ff000; or eax, 0x200003
            mov dword ptr [edx * 4 + 0x12000], eax; pop edx; pop eax; add esp, 4; iretd""",
        0x10000: pack([0x11003, 0x12003]),
        0x11000: pack(page << 12 | 3 for page in range(1024)),
    }
    vm, heat = heated(parts, BtOptions(counted=True))
    assert flat.finish(vm) == 0
    counted = counts(vm, heat)
    assert vm.stats.injected[14] == pages
    by_text = {text: counted[address] for address, text in addresses(vm)}
    assert by_text["mov edx, ebx"] == by_text["mov dword ptr [ebx], ecx"] == by_text["dec ecx"] == pages
    assert {counted[address] for address in counted if address < ENTRY} == {pages}


def test_exits_saved_are_those_that_trapping_stubs_take() -> None:
    """The same guest with either kind of stub: what the one saves is what the other takes more."""
    guest: dict[int, str | bytes] = {ENTRY: f"mov esp, 0x8000; mov ecx, 500; again: {SWITCHES}; mov eax, cr0; loop again; sti; cli; {FINISH}"}
    saved, callouts = {}, {}
    for cached in (True, False):
        vm, heat = heated(guest, BtOptions(stubs_in_cache=cached, counted=True))
        assert flat.finish(vm) == 0 and vm.start is not None
        callouts[cached] = vm.stats.callouts.total()
        saved[cached] = Builder(vm.backend.caches, vm.start.symbols, heat).totals(callouts[cached]).saved
    assert saved == {True: callouts[False] - callouts[True], False: 0}
    assert saved[True] == 4 * 500 + 2


@pytest.mark.parametrize("ring", [1, 3])
def test_users_are_counted_too(ring: int) -> None:
    """Under --user translate: the processes of `rings` pass their tests, each system call is counted where it stands, and where it traps."""
    kernel = kernels()["rings"]
    options = BtOptions(ring=ring, counted=True, translate_user=True)
    vm = whole.Vm(whole.machine_for(kernel.memory_mib), memory_mib=kernel.memory_mib, options=options)
    vm.load(str(kernel.file), append=kernel.command_line)
    heat = Heat()
    heat.attach(vm)
    assert flat.finish(vm, 60) == 0 and vm.start is not None
    blocks = Builder(vm.backend.caches, vm.start.symbols, heat).blocks()
    calls = [line for block in blocks if block.cache == "user" for line in block.lines if line.row == "int"]
    assert sum(line.count or 0 for line in calls) == sum(line.exits for line in calls) == vm.stats.architectural["system call"] > 10


def test_large_counts_leave_their_words() -> None:
    """A counter has 32 bits: what is large is kept elsewhere, and is told with what is counted since."""
    vm, heat = heated({ENTRY: f"mov ecx, 100; again: dec ecx; jnz again; {FINISH}"}, BtOptions(counted=True))
    assert flat.finish(vm) == 0
    cache = vm.backend.caches["kernel"]
    before = counts(vm, heat)
    counters = [counter for translation in cache.translations for counter in translation.counters.values()]
    for counter in counters:
        cache.words[counter // 4] += LARGE
    for known in heat.caches:
        known.fold(0)
    assert not any(cache.words[counter // 4] for counter in counters)
    cache.words[counters[0] // 4] = 5
    after = counts(vm, heat)
    assert {(after[address] - before[address]) % LARGE for address in before} == {0, 5}
    assert all(after[address] > before[address] for address in before)


def test_nothing_is_counted_unless_wanted() -> None:
    """Without the option the code has no counters."""
    vm = flat.flat_vm({ENTRY: f"nop; cli; {FINISH}"})
    assert flat.finish(vm) == 0
    for translation in vm.backend.caches["kernel"].translations:
        assert not translation.counters
        assert all(kind is not Kind.UNDEFINED for _, _, kind in kinds(translation))


def test_16_bit_code_counts_nothing_and_runs() -> None:
    """A counter is 32-bit code: code that is translated with care goes without, and does what it does."""
    gdt = [0, flat.FLAT_CODE, flat.FLAT_DATA, 0x0000_9B00_0000_FFFF]
    call = ".byte 0x9a; .long 0x6000; .short 0x18"
    parts: dict[int, str | bytes] = {
        ENTRY: f"{flat.LGDT.format(POINTER)}; mov esp, 0x8000; xor ebx, ebx; {call}; cmp ebx, 3; setne al; out 0xf4, al",
        0x6000: bytes.fromhex("b90300 6643 e2fc 66cb"),  # mov cx,3; l: inc ebx; loop l; retf (32-bit)
        IDT: quads(gdt),
        POINTER: (8 * len(gdt) - 1).to_bytes(2, "little") + IDT.to_bytes(4, "little"),
    }
    vm, heat = heated(parts, BtOptions(counted=True))
    assert flat.finish(vm) == 0
    assert counts(vm, heat)[ENTRY] == 1
