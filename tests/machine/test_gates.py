"""What is known of a gate holds only while all that it came from does: the gate, the stack in the TSS, and the tables."""

import pytest

from tests.machine.flat import FINISH, finish, flat_vm, gate, quads, words
from tests.machine.small_kernel import HANDLERS, IDENTITY, LOG, STACK, TABLES, TO_USER, small_kernel
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.backends.native import NativeOptions
from vmm.backends.step import StepOptions

IDT, TSS = TABLES + 0x1000, TABLES + 0x2000
WAYS = (NativeOptions(), HwOptions(mmu="nested"), HwOptions(mmu="shadow"), BtOptions(), BtOptions(ring=3), StepOptions())
OTHER = 0x1A0000  # another IDT

# Each handler notes its vector's number and where its stack is, and the user goes on with the next of these.
CHANGES = (
    "",  # as before: from here on it is known
    "",
    f"mov dword ptr [{IDT + 8 * 0x82}],{0x80000 | (HANDLERS + 0x8300) & 0xFFFF:#x}",  # the gate leads elsewhere
    f"mov dword ptr [{IDT + 8 * 0x82}],{0x80000 | (HANDLERS + 0x8200) & 0xFFFF:#x}",
    f"mov dword ptr [{TSS + 4}],{STACK - 0x800}",  # another stack
    f"mov dword ptr [{IDENTITY + 4 * (IDT >> 12)}],{OTHER | 3}; invlpg [{IDT}]",  # another page behind the IDT
    f"mov dword ptr [{IDENTITY + 4 * (IDT >> 12)}],{IDT | 3}; mov eax,cr3; mov cr3,eax",
    f"mov dword ptr [{IDT + 8 * 0x82 + 4}],{HANDLERS & 0xFFFF0000 | 0x6E00:#x}",  # not present
)


@pytest.mark.parametrize("options", WAYS, ids=("native", "nested", "shadow", "ring 1", "ring 3", "step"))
def test_a_change_shows_at_the_next_event(options: Options) -> None:
    """One interrupt of the user's before each change and behind the last: the same on every back-end."""
    note = f"push eax; push ecx; mov ecx,[{LOG}]; mov dword ptr [{LOG}+ecx*8+8],%d; lea eax,[esp+8]; mov [{LOG}+ecx*8+12],eax; inc dword ptr [{LOG}]"
    out = "pop ecx; pop eax; .byte 0xcf"
    changes = {0x84 + n: f"push eax; {change}; pop eax; .byte 0xcf" for n, change in enumerate(CHANGES) if change}
    user = "".join(f"int 0x82; {f'int {0x84 + n:#x}; ' if change else ''}" for n, change in enumerate(CHANGES)) + "int 0x82; l: jmp l"
    handlers = {0x82: f"{note % 2}; {out}", 0x83: f"{note % 3}; {out}", 11: f"{note % 11}; {FINISH}; m: jmp m"}
    parts = small_kernel(TO_USER, user=user, handlers=handlers | changes)
    other = [gate(HANDLERS + 0x8300, dpl=3) if vector in (0x82, 0x83) else gate(HANDLERS + 0x100 * vector, dpl=3) for vector in range(256)]
    vm = flat_vm(parts | {OTHER: quads(other)}, options=options)
    assert finish(vm) == 0
    count, _, *noted = words(vm, LOG, 2 + 2 * 9)
    upper, lower = STACK - 20, STACK - 0x800 - 20  # behind the five words of a frame
    assert count == 9
    assert list(zip(noted[::2], noted[1::2], strict=True)) == [
        (2, upper), (2, upper), (2, upper), (3, upper), (2, upper), (2, lower), (3, lower), (2, lower), (11, lower - 4),
    ]  # fmt: skip
