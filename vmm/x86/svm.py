"""Exit codes of a CPU with virtualization extension: AMD64 Architecture Programmer's Manual 2, appendix C "SVM Intercept Exit Codes"."""

from __future__ import annotations


class ExitCode:
    CR_WRITE, DR_READ, DR_WRITE = 0x10, 0x20, 0x30  # and the register's number
    INTR, NMI, SMI, LTR, RDTSC, RDPMC, CPUID, HLT, MSR, MONITOR, MWAIT = 0x60, 0x61, 0x62, 0x6D, 0x6E, 0x6F, 0x72, 0x78, 0x7C, 0x8A, 0x8B
