"""Bits of control registers, EFLAGS, page-table entries and page-fault error codes, under the manual's names.

Source: SDM 3A 2.5 "Control Registers", 2.3 "System Flags", 4.3 and 4.4 (paging formats), 4.7 "Page-Fault Exceptions".
"""

from __future__ import annotations


class Cr0:
    PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG = (1 << n for n in (0, 1, 2, 3, 4, 5, 16, 18, 29, 30, 31))


class Cr4:
    VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT = (1 << n for n in range(11))


class Dr6:
    BD, BS = 1 << 13, 1 << 14


class Dr7:
    GD = 1 << 13


class Flag:
    CF, PF, AF, ZF, SF, TF, IF, DF, OF = (1 << n for n in (0, 2, 4, 6, 7, 8, 9, 10, 11))
    IOPL = 3 << 12
    NT, RF, VM, AC, VIF, VIP, ID = (1 << n for n in (14, 16, 17, 18, 19, 20, 21))


class Pte:
    """Bits that the levels and formats share."""

    P, W, U, PWT, PCD, A, D, PS, G = (1 << n for n in range(9))
    NX = 1 << 63


class Fault:
    """Page-fault error code."""

    P, W, U, RSVD, I = (1 << n for n in range(5))  # noqa: E741  I is the manual's name for "instruction fetch"


class Efer:
    SCE, LME, LMA, NXE = (1 << n for n in (0, 8, 10, 11))


class Vector:
    DE, DB, NMI, BP, OF, BR, UD, NM, DF, CSO, TS, NP, SS, GP, PF, _15, MF, AC, MC, XM = range(20)


ERROR_CODE_VECTORS = frozenset((8, 10, 11, 12, 13, 14, 17))  # exceptions that push an error code
CONTRIBUTORY = frozenset((0, 10, 11, 12, 13))  # SDM 3A 6.15 "Interrupt 8: Double Fault Exception"
