"""The VMCS: VM-entry checks fail by the manual's section, the field and its value; fields that are not honoured are refused."""

import pytest

from vmm.backends.hw.controls import new_vmcs, set_start
from vmm.backends.hw.options import HwOptions
from vmm.backends.hw.vmcs import BLOCKING_BY_MOV_SS, BLOCKING_BY_STI, UNUSABLE, EntryFailed, Field, Primary, Secondary, Unsupported, Vmcs
from vmm.boot.symbols import Symbols
from vmm.start import GDT, Start


class _Memory:
    """A guest memory that holds nothing but the loader's descriptors."""

    def read(self, gpa: int, size: int) -> bytes:
        return GDT[gpa : gpa + size]


def start_vmcs() -> Vmcs:
    """The VMCS of a guest at its first instruction."""
    vmcs = new_vmcs(HwOptions(), 0x5000)
    set_start(vmcs, Start(entry=0x100000, kind="flat", symbols=Symbols("guest"), gdt_base=0), _Memory())
    return vmcs


def test_a_loaders_start_passes() -> None:
    """What a VM begins with is a valid guest state."""
    start_vmcs().check()


@pytest.mark.parametrize(
    ("field", "value", "section", "rule"),
    (
        (Field.GUEST_CR0, 0x80000010, "27.3.1.1", "PE must be 1"),
        (Field.GUEST_CR4, 1 << 18, "27.3.1.1", "does not support"),
        (Field.GUEST_IA32_EFER, 1 << 10, "27.3.1.1", "LMA must equal"),
        (Field.GUEST_IA32_EFER, 1 << 12, "27.3.1.1", "must be 0"),
        (Field.GUEST_CR3, 1 << 36, "27.3.1.1", "physical-address width"),
        (Field.GUEST_CS_ACCESS_RIGHTS, 0xC093 & ~0x80, "27.3.1.2", "S and P"),
        (Field.GUEST_CS_ACCESS_RIGHTS, 0xC092, "27.3.1.2", "type"),
        (Field.GUEST_DS_ACCESS_RIGHTS, 0xC293, "27.3.1.2", "reserved bits"),
        (Field.GUEST_SS_LIMIT, 0xFFFF0000, "27.3.1.2", "end in FFFh"),
        (Field.GUEST_TR_ACCESS_RIGHTS, UNUSABLE, "27.3.1.2", "TR must be usable"),
        (Field.GUEST_GDTR_LIMIT, 0x10000, "27.3.1.3", "limit"),
        (Field.GUEST_RIP, 1 << 32, "27.3.1.4", "below 4 GiB"),
        (Field.GUEST_RFLAGS, 0, "27.3.1.4", "bit 1"),
        (Field.GUEST_ACTIVITY_STATE, 3, "27.3.1.5", "activity"),
        (Field.GUEST_INTERRUPTIBILITY_STATE, BLOCKING_BY_STI | BLOCKING_BY_MOV_SS, "27.3.1.5", "exclude"),
        (Field.GUEST_INTERRUPTIBILITY_STATE, BLOCKING_BY_STI, "27.3.1.5", "RFLAGS.IF"),
        (Field.VMCS_LINK_POINTER, 0, "27.3.1.5", "shadow VMCS"),
        (Field.EPT_POINTER, 0x5000, "27.2.1", "four levels"),
        (Field.MSR_BITMAP, 0x5001, "27.2.1", "bits 11:0"),
        (Field.PRIMARY_CONTROLS, Primary.SECONDARY_CONTROLS | 1 << 21, "27.2.1", "does not offer"),
        (Field.SECONDARY_CONTROLS, Secondary.UNRESTRICTED_GUEST, "27.2.1", "needs EPT"),
        (Field.SECONDARY_CONTROLS, Secondary.ENABLE_EPT, "27.3.1.1", "without unrestricted guest"),
        (Field.ENTRY_INTERRUPTION_INFO, 1 << 31 | 14, "27.2.1", "injected"),
    ),
    ids=lambda value: value.name if isinstance(value, Field) else str(value) if isinstance(value, str) and value[0].isdigit() else "",
)
def test_each_check_names_what_fails(field: Field, value: int, section: str, rule: str) -> None:
    """One field of a valid state is wrong: the entry fails by that check, with the field and its value."""
    vmcs = start_vmcs()
    vmcs[field] = value
    with pytest.raises(EntryFailed) as failed:
        vmcs.check()
    check = failed.value.check
    assert (check.section, check.field, check.value) == (section, field, value) or field in (Field.SECONDARY_CONTROLS,)
    assert rule in str(failed.value)


def test_fields_that_are_not_honoured_are_refused() -> None:
    """The page-fault error-code mask exists in the manual and not here."""
    vmcs = Vmcs()
    vmcs.write(Field.EXCEPTION_BITMAP, 1 << 14)
    assert vmcs[Field.EXCEPTION_BITMAP] == 1 << 14
    with pytest.raises(Unsupported, match=r"0x4006: not supported"):
        vmcs.write(0x4006, 0)
