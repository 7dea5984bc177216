"""A virtual machine monitor framework for x86: the names that a script needs, importable from here.

Knows where each name lives, and loads that module only when the name is first used: `import vmm` costs nothing, and loading a
part of the package loads no CPU. docs/FRAMEWORK.md shows the names at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.backends.bt import BtOptions
    from vmm.bus import Device
    from vmm.call_stack import backtrace
    from vmm.console import Console, Recorder
    from vmm.devices.disk import Disk
    from vmm.errors import InputError
    from vmm.exits import End, Exit, Stop
    from vmm.machine import Machine
    from vmm.observation import observe
    from vmm.vcpu import Vcpu
    from vmm.vm import Vm, machine_for

__all__ = [
    "BtOptions",
    "Console",
    "Device",
    "Disk",
    "End",
    "Exit",
    "InputError",
    "Machine",
    "Recorder",
    "Stop",
    "Vcpu",
    "Vm",
    "backtrace",
    "machine_for",
    "observe",
]

_HOMES = {
    "BtOptions": "vmm.backends.bt",
    "Console": "vmm.console",
    "Device": "vmm.bus",
    "Disk": "vmm.devices.disk",
    "End": "vmm.exits",
    "Exit": "vmm.exits",
    "InputError": "vmm.errors",
    "Machine": "vmm.machine",
    "Recorder": "vmm.console",
    "Stop": "vmm.exits",
    "Vcpu": "vmm.vcpu",
    "Vm": "vmm.vm",
    "backtrace": "vmm.call_stack",
    "machine_for": "vmm.vm",
    "observe": "vmm.observation",
}


def __getattr__(name: str) -> object:
    """A public name on its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
