"""Access to memory-mapped devices: any instruction, by letting the CPU run it on a scratch frame.

The instruction's own memory access is done by the CPU on a frame that holds what the device reads, mapped for this one
instruction; what the instruction left there is then given to the device. So there is no second implementation of the
instruction set. Knows the bus; asks the back-end for the one step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.exits import RESUME, Outcome

if TYPE_CHECKING:
    from vmm.vm import Vm


def access_device_memory(vm: Vm, gpa: int, gva: int, write: bool) -> Outcome:
    """Runs the instruction at EIP, which accesses device memory at `gpa`, mapped at `gva`."""
    size, reads, writes = vm.backend.memory_access(write)
    if writes and not write:  # the read of a read-modify-write comes first, and tells nothing of the right to write
        vm.paging.walk(gva, write=True, user=vm.vcpu.cpl == 3)
    machine, frame, offset = vm.machine, vm.scratch_frame, gva & 0xFFF
    size = min(size, 0x1000 - offset)
    at = frame << 12 | offset
    if reads:
        value = device_access(vm, gpa, size, None)
        machine.memory[at : at + size] = value.to_bytes(size, "little")
    unmap = vm.mmu.map_scratch(gva, frame, user=vm.vcpu.cpl == 3)

    def done(completed: bool) -> None:
        unmap()
        if writes and completed:
            device_access(vm, gpa, size, int.from_bytes(machine.memory[at : at + size], "little"))

    vm.backend.step(done)
    return RESUME


def device_access(vm: Vm, gpa: int, size: int, value: int | None) -> int:
    """Reads (value None) or writes device memory. Splits what is wider than a device access into 32-bit ones."""
    if size in (1, 2, 4):
        return vm.board.bus.memory(gpa, size, value)
    result = 0
    for n in range(0, size, 4):
        width = min(4, size - n) if size - n != 3 else 2
        part = None if value is None else value >> 8 * n & (1 << 8 * width) - 1
        result |= vm.board.bus.memory(gpa + n, width, part) << 8 * n
    return result
