"""The state of a paravirtual guest's domain as plain values, and back into the domain of another VM.

Such a guest knows its memory by machine frames, so it goes on only in the frames that it had. What the VMM counts of them is not saved: the page
tables that were in use are validated anew. Knows the parts of a domain; knows no file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm.devices.xen_store import Watch
from vmm.errors import InputError
from vmm.machine import FRAME, Machine, OutOfFrames
from vmm.mmu.frames import Kind, Refused
from vmm.xen.board import build_xen_board
from vmm.xen.calls_cpu import SHORTEST_PERIOD
from vmm.xen.channels import Channel, State
from vmm.xen.grants import Mapping
from vmm.xen.shared_info import CHANNELS
from vmm.xen.traps import Handler

if TYPE_CHECKING:
    from vmm.clock import Alarm
    from vmm.vm import Vm
    from vmm.xen.domain import XenDomain

Plain = None | bool | int | str | list["Plain"] | dict[str, "Plain"]
DomainState = dict[str, Plain]
"""By the part's name, in values that JSON can hold. Bytes are hexadecimal text."""
_TABLES: Final = (Kind.LEAF, Kind.DIRECTORY, Kind.LAST_DIRECTORY, Kind.TOP)
_WORD, _LONG = 1 << 32, 1 << 64
_OTHER_FRAMES: Final = "snapshot: its guest knows its memory by machine frames that are not free on this machine"


def save(domain: XenDomain) -> DomainState:
    """The domain of a VM that has settled."""
    frames, shared, descriptors, grants = domain.frames, domain.shared, domain.descriptors, domain.grants
    traps, run, memory = domain.traps, domain.run_state, domain.machine.memory
    own = [shared.mfn, *grants.frames_used]
    signals = {notify: name for name, notify in domain.board.signals().items()}
    return {
        "memory": [*domain.memory.frames],
        "own": [*own],
        "contents": [memory[mfn * FRAME : (mfn + 1) * FRAME].hex() for mfn in own],
        "m2p": [domain.m2p[mfn] for mfn in (*domain.memory.frames, *own)],
        "given up": [*sorted(frames.given_up), *frames.free],
        "pins": [[mfn, frames.kind[mfn]] for mfn in sorted(frames.pinned)],
        "base": domain.mmu.base,
        "rings": [*domain.rings],
        "info": [*shared.place],
        "gdt": [*descriptors.gdt],
        "ldt": [descriptors.ldt_base, descriptors.ldt_count],
        "handlers": {str(vector): _handler(handler) for vector, handler in traps.handlers.items()},
        "callbacks": [_handler(traps.event), _handler(traps.failsafe)],
        "stack": [*traps.stack],
        "channels": {
            str(port): [one.state.value, *one.remote, one.peer, signals[one.notify] if one.notify else None]
            for port, one in domain.channels.open.items()
        },
        "grants": {
            str(handle): [one.reference, one.mfn, one.address, one.in_entry, one.writable] for handle, one in grants.mappings.items()
        },
        "handles": grants.handles,
        "alarms": [_alarm(domain.one_shot), _alarm(domain.periodic), _alarm(domain.poll_end)],
        "period": domain.period,
        "polled": [*domain.polled],
        "nmi": [domain.nmi_pending, domain.nmi_masked],
        "run": [run.area, run.state, run.since, *run.spent],
        "console": domain.board.console.typed.hex(),
        "store": _store(domain),
        "blocks": [[block.ring, block.port, block.consumed] for block in domain.board.blocks],
    }


def _handler(handler: Handler | None) -> Plain:
    return None if handler is None else [handler.selector, handler.address, handler.level, handler.masks]


def _alarm(alarm: Alarm | None) -> Plain:
    return None if alarm is None or alarm.action is None else [alarm.deadline, alarm.order]


def _store(domain: XenDomain) -> Plain:
    store = domain.board.store
    return {
        "nodes": _nodes(store.nodes),
        "watches": [[watch.path, watch.token, watch.shown] for watch in store.watches],
        "transactions": {str(number): _nodes(nodes) for number, nodes in store.transactions.items()},
        "written": {str(number): [*paths] for number, paths in store.written.items()},
        "last": store.last_transaction,
        "received": store.received.hex(),
        "answers": store.answers.hex(),
    }


def _nodes(nodes: dict[str, bytes]) -> dict[str, Plain]:
    return {path: value.hex() for path, value in nodes.items()}


# -- restoring -----------------------------------------------------------------------------------------------------------------------


def arrange(machine: Machine, state: DomainState) -> None:
    """Has the machine keep the frames that the guest knows for the VM that will be built on it next. Raises InputError when they are not free."""
    try:
        memory, (shared, *grants) = _Values(state["memory"]).numbers(_WORD), _Values(state["own"]).numbers(_WORD)
        machine.arrange([*memory, shared], grants)
    except (TypeError, ValueError, KeyError):
        raise InputError("snapshot: its domain has no memory") from None
    except OutOfFrames:
        raise InputError(_OTHER_FRAMES) from None


def restore(vm: Vm, state: DomainState) -> None:
    """Puts a state into the domain of a VM that has nothing in it, whose memory and registers are the guest's already. Raises InputError."""
    assert vm.domain is not None
    try:
        _restore(vm, vm.domain, {name: _Values(value) for name, value in state.items()})
    except (TypeError, ValueError, KeyError, IndexError, struct.error):
        raise InputError("snapshot: its domain is not as in this version") from None
    except OutOfFrames:
        raise InputError(_OTHER_FRAMES) from None
    except Refused as refused:
        raise InputError(f"snapshot: its domain is unsound: {refused.why}") from None


def _restore(vm: Vm, domain: XenDomain, saved: dict[str, _Values]) -> None:
    _restore_frames(domain, saved)
    _restore_traps(domain, saved)
    domain.board = build_xen_board(vm, domain, vm.disks)
    _restore_channels(domain, saved)
    _restore_devices(domain, saved)
    vm.receive = domain.board.console.receive
    domain.polled = tuple(saved["polled"].numbers(CHANNELS))
    domain.nmi_pending, domain.nmi_masked = (saved["nmi"].part(n).flag() for n in range(2))
    area, run = saved["run"].part(0), domain.run_state
    run.area = None if area.value is None else area.number(_WORD)
    run.state, run.since, *run.spent = saved["run"].numbers(_LONG, first=1)
    if run.state > 3 or len(run.spent) != 4:
        raise ValueError
    _restore_alarms(domain, saved)
    _restore_contents(domain, saved)  # last: what was done here has left its marks in the shared info


def _restore_frames(domain: XenDomain, saved: dict[str, _Values]) -> None:
    """Takes the references that the guest had: by pins, by the table in use, by descriptors, and by rings."""
    frames, memory, own = domain.frames, domain.memory.frames, saved["own"].numbers(_WORD)
    if saved["memory"].numbers(_WORD) != memory or own[:1] != [domain.shared.mfn] or len(own) - 1 > domain.grants.most:
        raise InputError(_OTHER_FRAMES)
    domain.grants.take_over(own[1:])
    for mfn, pfn in zip((*memory, *own), saved["m2p"].numbers(_WORD), strict=True):
        domain.m2p[mfn] = pfn
    rings = saved["rings"].numbers(_WORD)
    if len(rings) not in (2, 3):
        raise ValueError(rings)
    domain.share(rings)
    for pin in saved["pins"].parts():
        mfn, kind = pin.numbers(_WORD)
        if kind not in _TABLES:
            raise ValueError(kind)
        domain.mmu.pin(mfn, kind)
    domain.mmu.use(saved["base"].number(_WORD))
    domain.descriptors.set_gdt(saved["gdt"].numbers(_WORD))
    domain.descriptors.set_ldt(*saved["ldt"].numbers(_WORD))
    for mfn in saved["given up"].numbers(_WORD):
        frames.give_up(mfn)


def _restore_traps(domain: XenDomain, saved: dict[str, _Values]) -> None:
    traps = domain.traps
    for vector, handler in saved["handlers"].items(256):
        traps.handlers[vector] = handler.handler()
    traps.event, traps.failsafe = (None if one.value is None else one.handler() for one in saved["callbacks"].parts())
    selector, esp = saved["stack"].numbers(_WORD)
    traps.stack = selector & 0xFFFF, esp


def _restore_channels(domain: XenDomain, saved: dict[str, _Values]) -> None:
    channels, signals = domain.channels, domain.board.signals()
    for port, one in saved["channels"].items(CHANNELS):
        state, first, second, peer = one.numbers(_WORD, last=4)
        notify = one.part(4)
        channels.open[port] = Channel(State(state), (first, second), None if notify.value is None else signals[notify.text()], peer)
        if channels.open[port].state is State.VIRQ:
            channels.virtual[second] = port
    if any(one.peer not in channels.open for one in channels.open.values() if one.peer):
        raise ValueError
    for handle, one in saved["grants"].items(_WORD):
        reference, mfn, address = one.numbers(_LONG, last=3)
        domain.grants.mappings[handle] = Mapping(reference, mfn, address, one.part(3).flag(), one.part(4).flag())
        domain.grants.entry(reference)
        if one.part(3).flag() and address >> 3 >= len(domain.machine.quads):
            raise ValueError(address)
    domain.grants.handles = saved["handles"].number(_WORD)


def _restore_devices(domain: XenDomain, saved: dict[str, _Values]) -> None:
    board, store, plain = domain.board, domain.board.store, dict(saved["store"].named())
    board.console.typed[:] = saved["console"].data()
    store.nodes = plain["nodes"].nodes()
    store.watches[:] = [Watch(*(word.text() for word in watch.parts())) for watch in plain["watches"].parts()]
    store.transactions = {number: nodes.nodes() for number, nodes in plain["transactions"].items(_WORD)}
    store.written = {number: [path.text() for path in paths.parts()] for number, paths in plain["written"].items(_WORD)}
    store.last_transaction = plain["last"].number(_WORD)
    store.received[:], store.answers[:] = plain["received"].data(), plain["answers"].data()
    for block, one in zip(board.blocks, saved["blocks"].parts(), strict=True):
        ring = one.part(0)
        port, consumed = one.numbers(_WORD, first=1)
        if ring.value is not None:
            block.connected(ring.number(_WORD), port, domain.channels.raiser(port), consumed)


def _restore_alarms(domain: XenDomain, saved: dict[str, _Values]) -> None:
    domain.period = saved["period"].number(_LONG)
    if 0 < domain.period < SHORTEST_PERIOD:
        raise ValueError(domain.period)
    places = (("one_shot", domain.tick), ("periodic", domain.tock), ("poll_end", domain.wake))
    due: list[tuple[int, int, str, Callable[[], None]]] = []
    for (name, action), alarm in zip(places, saved["alarms"].parts(), strict=True):
        if alarm.value is not None:
            deadline, order = alarm.numbers(_LONG)
            due.append((deadline, order, name, action))
    for deadline, _, name, action in sorted(due, key=lambda one: one[:2]):
        setattr(domain, name, domain.clock.at(deadline, action))


def _restore_contents(domain: XenDomain, saved: dict[str, _Values]) -> None:
    memory = domain.machine.memory
    for mfn, contents in zip(saved["own"].numbers(_WORD), saved["contents"].parts(), strict=True):
        memory[mfn * FRAME : (mfn + 1) * FRAME] = contents.data()
    mfn, offset = saved["info"].numbers(_WORD)
    shared = domain.shared
    if mfn not in (shared.mfn, *domain.rings[2:]) or offset > FRAME - shared.CPU_SIZE or offset & 3:
        raise ValueError(offset)
    shared.see(mfn, offset)


@dataclass(frozen=True, slots=True)
class _Values:
    """A plain value as what it must be. Everything raises TypeError, ValueError or IndexError for one that is not."""

    value: Plain

    def number(self, end: int) -> int:
        if type(self.value) is not int:
            raise TypeError(self.value)
        if not 0 <= self.value < end:
            raise ValueError(self.value)
        return self.value

    def flag(self) -> bool:
        if type(self.value) is not bool:
            raise TypeError(self.value)
        return self.value

    def text(self) -> str:
        if type(self.value) is not str:
            raise TypeError(self.value)
        return self.value

    def data(self) -> bytes:
        return bytes.fromhex(self.text())

    def parts(self) -> list[_Values]:
        if type(self.value) is not list:
            raise TypeError(self.value)
        return [_Values(one) for one in self.value]

    def part(self, n: int) -> _Values:
        return self.parts()[n]

    def numbers(self, end: int, first: int = 0, last: int | None = None) -> list[int]:
        return [one.number(end) for one in self.parts()[first:last]]

    def named(self) -> Iterator[tuple[str, _Values]]:
        if type(self.value) is not dict:
            raise TypeError(self.value)
        return ((name, _Values(one)) for name, one in self.value.items())

    def items(self, end: int) -> Iterator[tuple[int, _Values]]:
        """By numbers, which JSON writes as text."""
        return ((_Values(int(name)).number(end), one) for name, one in self.named())

    def nodes(self) -> dict[str, bytes]:
        return {path: one.data() for path, one in self.named()}

    def handler(self) -> Handler:
        selector, address, level = self.numbers(_WORD, last=3)
        return Handler(selector, address, level, self.part(3).flag())
