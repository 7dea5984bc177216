"""What CPUID and the MSRs say: the CPUs that guests see, kept to what this machine can do.

A 32-bit CPU of the class of QEMU's qemu32 with NX, and one with long mode besides, for back-ends that can run it. Neither has XSAVE, MONITOR or
SMEP, which the translator or the engine do not offer. Knows no guest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmm.cpu_state import Feature
from vmm.x86.bits import Efer

_FPU, _DE, _PSE, _TSC, _MSR, _PAE, _CX8, _APIC, _SEP, _PGE, _CMOV, _PAT = (1 << n for n in (0, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16))
_CLFSH, _MMX, _FXSR, _SSE, _SSE2 = (1 << n for n in (19, 23, 24, 25, 26))
_FEATURES_EDX = _FPU | _DE | _PSE | _TSC | _MSR | _PAE | _CX8 | _APIC | _SEP | _PGE | _CMOV | _PAT | _CLFSH | _MMX | _FXSR | _SSE | _SSE2
_FEATURES_ECX = 1 << 0 | 1 << 9 | 1 << 19 | 1 << 20 | 1 << 23  # SSE3 SSSE3 SSE4.1 SSE4.2 POPCNT
_CX16 = 1 << 13  # in ECX of leaf 1
_SYSCALL, _NX, _HUGE_PAGES, _LM = (1 << n for n in (11, 20, 26, 29))  # in EDX of leaf 80000001h
_LAHF = 1 << 0  # in its ECX
_BRAND = b"VMM virtual CPU on Unicorn".ljust(48, b"\0")

TIME_STAMP, APIC_BASE = 0x10, 0x1B
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
EFER = 0xC0000080
STAR, LSTAR, CSTAR, SFMASK = range(0xC0000081, 0xC0000085)
FS_BASE, GS_BASE, KERNEL_GS_BASE = range(0xC0000100, 0xC0000103)
_KNOWN_MSRS = {TIME_STAMP: 0, 0x17: 0, APIC_BASE: 0xFEE00900, 0x8B: 0, 0x277: 0x0007040600070406, 0x1A0: 0, EFER: 0}
_KNOWN_MSRS |= {SYSENTER_CS: 0, SYSENTER_ESP: 0, SYSENTER_EIP: 0}
_LONG_MSRS = dict.fromkeys((STAR, LSTAR, CSTAR, SFMASK, FS_BASE, GS_BASE, KERNEL_GS_BASE), 0)

ADDRESSES = frozenset((SYSENTER_ESP, SYSENTER_EIP, LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE))
"""MSRs that hold linear addresses: values that are not canonical are refused."""


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A CPU as guests see it. long_mode: whether it has 64-bit code, and all that comes with it. fast_calls: whether it says that it has SYSENTER."""

    long_mode: bool
    fast_calls: bool = True

    @property
    def efer(self) -> int:
        """The bits of EFER that can be written."""
        return Efer.NXE | Efer.LME | Efer.SCE if self.long_mode else Efer.NXE

    @property
    def offered(self) -> Mapping[int, int]:
        """What of the CPU's own instructions is left to guests, so that none runs that CPUID does not name. SMEP and LM are the host's."""
        return {
            Feature.LEAF_1_EDX: _FEATURES_EDX,
            Feature.LEAF_1_ECX: self._ecx,
            Feature.LEAF_7_EBX: 1 << 7,
            Feature.LEAF_80000001_EDX: self._extended_edx | _LM,
            Feature.LEAF_80000001_ECX: self._extended_ecx,
        }

    def msrs(self) -> dict[int, int]:
        """The MSRs that exist, at reset."""
        return _KNOWN_MSRS | _LONG_MSRS if self.long_mode else dict(_KNOWN_MSRS)

    def cpuid(self, leaf: int, subleaf: int, initial_apic_id: int = 0) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX for a leaf (SDM 2A "CPUID"). A leaf beyond the last answers like the last basic one."""
        if leaf == 0:
            return 4, 0x756E6547, 0x6C65746E, 0x49656E69
        if leaf == 1:
            return 0x0633, initial_apic_id << 24 | 8 << 8 | 1 << 16, self._ecx, _FEATURES_EDX if self.fast_calls else _FEATURES_EDX & ~_SEP
        if leaf == 0x80000000:
            return 0x80000008, 0, 0, 0
        if leaf == 0x80000001:
            return 0x0633, 0, self._extended_ecx, self._extended_edx
        if 0x80000002 <= leaf <= 0x80000004:
            part = _BRAND[16 * (leaf - 0x80000002) :][:16]
            a, b, c, d = (int.from_bytes(part[n : n + 4], "little") for n in (0, 4, 8, 12))
            return a, b, c, d
        if leaf == 0x80000008:
            return 36 | (48 if self.long_mode else 32) << 8, 0, 0, 0
        return 0, 0, 0, 0

    @property
    def _ecx(self) -> int:
        return _FEATURES_ECX | _CX16 if self.long_mode else _FEATURES_ECX

    @property
    def _extended_edx(self) -> int:
        return _NX | _SYSCALL | _HUGE_PAGES | _LM if self.long_mode else _NX

    @property
    def _extended_ecx(self) -> int:
        return _LAHF if self.long_mode else 0


CPU_32, CPU_64 = CpuModel(False), CpuModel(True)
DIRECT_CPU_32 = CpuModel(False, fast_calls=False)
"""Where user code runs directly with stops from outside: SYSENTER goes astray there when one is pending (erratum 15)."""
