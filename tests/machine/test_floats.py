"""The x87 and SSE registers as a guest finds them at its first instruction."""

from __future__ import annotations

import pytest

from tests.machine.flat import FINISH, finish, flat_vm, words
from tests.machine.small_kernel import LOG, small_kernel
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw.options import HwOptions
from vmm.backends.native import NativeOptions
from vmm.backends.step import StepOptions
from vmm.backends.trap import TrapOptions


@pytest.mark.parametrize("options", (NativeOptions(), BtOptions(), HwOptions(), StepOptions(), TrapOptions()), ids=lambda options: options.backend)
def test_control_and_tag_words_at_the_start(options: Options) -> None:
    """Every exception is masked and the x87's stack is empty: what FNINIT and a reset leave, as on QEMU; arithmetic has full precision."""
    found = f"mov eax,cr4; or eax,0x600; mov cr4,eax; stmxcsr [{LOG}]; fnstcw [{LOG + 4}]; fnstenv [{LOG + 8}]"
    vm = flat_vm(small_kernel(f"{found}; fld1; fldpi; fdivp; fstp tbyte ptr [{LOG + 40}]; {FINISH}"), options=options)
    finish(vm)
    mxcsr, control, _, status, tags = words(vm, LOG, 5)
    assert (mxcsr, control & 0xFFFF, status & 0xFFFF, tags & 0xFFFF) == (0x1F80, 0x37F, 0, 0xFFFF)
    assert words(vm, LOG + 40, 2) == [0x4E44152A, 0xA2F9836E]  # of 1/pi, to the last bit
