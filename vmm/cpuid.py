"""What CPUID and the MSRs say: the CPU that guests see, kept to what this machine can do.

A 32-bit CPU of the class of QEMU's qemu32 with NX: no long mode, XSAVE, MONITOR or SMEP, which the translator or the
engine do not offer. Knows no guest.
"""

from __future__ import annotations

from vmm.cpu_state import Feature

_FPU, _DE, _PSE, _TSC, _MSR, _PAE, _CX8, _APIC, _SEP, _PGE, _CMOV, _PAT = (1 << n for n in (0, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16))
_CLFSH, _MMX, _FXSR, _SSE, _SSE2 = (1 << n for n in (19, 23, 24, 25, 26))
FEATURES_EDX = _FPU | _DE | _PSE | _TSC | _MSR | _PAE | _CX8 | _APIC | _SEP | _PGE | _CMOV | _PAT | _CLFSH | _MMX | _FXSR | _SSE | _SSE2
FEATURES_ECX = 1 << 0 | 1 << 9 | 1 << 19 | 1 << 20 | 1 << 23  # SSE3 SSSE3 SSE4.1 SSE4.2 POPCNT
_NX = 1 << 20
_BRAND = b"VMM virtual CPU on Unicorn".ljust(48, b"\0")

APIC_BASE = 0x1B
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
EFER = 0xC0000080
_KNOWN_MSRS = {0x10: 0, 0x17: 0, APIC_BASE: 0xFEE00900, 0x8B: 0, 0x277: 0x0007040600070406, 0x1A0: 0, EFER: 0}
_KNOWN_MSRS |= {SYSENTER_CS: 0, SYSENTER_ESP: 0, SYSENTER_EIP: 0}


# What of the CPU's own instructions is left to guests, so that none runs that CPUID does not name. SMEP and LM are the host's.
OFFERED = {
    Feature.LEAF_1_EDX: FEATURES_EDX,
    Feature.LEAF_1_ECX: FEATURES_ECX,
    Feature.LEAF_7_EBX: 1 << 7,
    Feature.LEAF_80000001_EDX: _NX | 1 << 29,
    Feature.LEAF_80000001_ECX: 0,
}


def cpuid(leaf: int, subleaf: int, initial_apic_id: int = 0) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX for a leaf (SDM 2A "CPUID"). A leaf beyond the last answers like the last basic one."""
    if leaf == 0:
        return 4, 0x756E6547, 0x6C65746E, 0x49656E69
    if leaf == 1:
        return 0x0633, initial_apic_id << 24 | 8 << 8 | 1 << 16, FEATURES_ECX, FEATURES_EDX
    if leaf == 0x80000000:
        return 0x80000008, 0, 0, 0
    if leaf == 0x80000001:
        return 0x0633, 0, 0, _NX
    if 0x80000002 <= leaf <= 0x80000004:
        part = _BRAND[16 * (leaf - 0x80000002) :][:16]
        a, b, c, d = (int.from_bytes(part[n : n + 4], "little") for n in (0, 4, 8, 12))
        return a, b, c, d
    if leaf == 0x80000008:
        return 36 | 32 << 8, 0, 0, 0
    return 0, 0, 0, 0


def initial_msrs() -> dict[int, int]:
    """The MSRs that exist, at reset."""
    return dict(_KNOWN_MSRS)
