"""The state of a board's devices as plain values, and back into the devices of another board that is wired alike.

Knows the table of fields, and how a value looks that JSON can hold. Must not know what any device does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TypeVar, cast

from vmm.board import Board
from vmm.clock import Alarm, Clock
from vmm.errors import InputError
from vmm.snapshot.device_fields import FIELDS, Fields

_T = TypeVar("_T")
_Sized = TypeVar("_Sized", bytearray, list[int])
Value = None | bool | int | str | list["Value"]
"""What a plain attribute is saved as. Bytes are hexadecimal text; a dictionary is a list of pairs."""
DeviceState = dict[str, dict[str, Value]]
"""By the device's class and number on the board, then by attribute. An alarm is its deadline and its place among those that are due together."""


def devices(board: Board) -> Iterator[tuple[str, object]]:
    """All devices of a board with a name for each: the class, and which of those on the bus it is. A board that is wired alike has the same names."""
    seen: set[int] = set()
    counts: dict[str, int] = {}
    waiting: deque[object] = deque((board.interrupts, board.power, *board.bus.devices()))  # the second may be at no port
    while waiting:
        device = waiting.popleft()
        if id(device) in seen:
            continue
        seen.add(id(device))
        name = type(device).__name__
        counts[name] = counts.get(name, 0) + 1
        yield f"{name} {counts[name]}", device
        for part in FIELDS[type(device)].parts:
            value = getattr(device, part)
            waiting.extend(one for one in (value if isinstance(value, tuple) else (value,)) if one is not None)


def save(board: Board) -> DeviceState:
    """The state of all devices."""
    state: DeviceState = {}
    for name, device in devices(board):
        fields = FIELDS[type(device)]
        values = {attribute: _saved(getattr(device, attribute)) for attribute in fields.values}
        for attribute in fields.alarms:
            alarm: Alarm | None = getattr(device, attribute)
            values[attribute] = None if alarm is None or alarm.action is None else [alarm.deadline, alarm.order]
        if values:
            state[name] = values
    return state


def restore(board: Board, clock: Clock, state: DeviceState) -> None:
    """Puts a state into the devices of a fresh board. Raises InputError for one that is not of such a board; the board is of no use then."""
    found = list(devices(board))
    expected = {name for name, device in found if (fields := FIELDS[type(device)]).values or fields.alarms}
    if expected != state.keys():
        raise InputError(f"snapshot: its devices are not those of this version: {', '.join(sorted(expected ^ state.keys()))}")
    alarms: list[tuple[int, int, object, str, str]] = []
    for name, device in found:
        fields = FIELDS[type(device)]
        _put(name, device, fields, state.get(name, {}))
        for attribute, method in fields.alarms.items():
            _put_alarm(name, device, attribute, method, state[name][attribute], alarms)
    for deadline, _, device, attribute, method in sorted(alarms, key=lambda alarm: alarm[:2]):
        setattr(device, attribute, clock.at(deadline, getattr(device, method)))
    for _, device in found:
        if FIELDS[type(device)].restored:
            getattr(device, "restored")()  # noqa: B009  # the table says that it is there, its type does not


def _put(name: str, device: object, fields: Fields, values: dict[str, Value]) -> None:
    if values.keys() != {*fields.values, *fields.alarms}:
        raise InputError(f"snapshot: {name} is not as in this version")
    for attribute in fields.values:
        value = values[attribute]
        try:
            if attribute in fields.optional:
                setattr(device, attribute, None if value is None else _is(value, int))
            else:
                setattr(device, attribute, _restored(getattr(device, attribute), value))
        except (TypeError, ValueError):
            raise InputError(f"snapshot: {name}: {attribute} is not what it should be") from None


def _put_alarm(name: str, device: object, attribute: str, method: str, value: Value, alarms: list[tuple[int, int, object, str, str]]) -> None:
    set_now: Alarm | None = getattr(device, attribute)
    if set_now is not None:
        set_now.cancel()
    setattr(device, attribute, None)
    if value is None:
        return
    if not isinstance(value, list) or len(value) != 2 or not all(type(number) is int for number in value):
        raise InputError(f"snapshot: {name}: {attribute} is no alarm")
    deadline, order = cast("list[int]", value)
    alarms.append((deadline, order, device, attribute, method))


def _saved(value: object) -> Value:
    match value:
        case None | bool() | int():
            return value
        case bytes() | bytearray():
            return value.hex()
        case dict():
            return [[_saved(key), _saved(one)] for key, one in value.items()]
        case list() | tuple() | deque():
            return [_saved(one) for one in value]
        case _:
            raise AssertionError(f"a device's attribute of a kind that is not saved: {type(value)}")


def _restored(now: object, value: Value) -> object:
    """`value` as what the attribute holds that is `now` there. Raises TypeError or ValueError for what it cannot hold."""
    match now:
        case bool():
            return _is(value, bool)
        case int():
            return _is(value, int)
        case bytes():
            return bytes.fromhex(_is(value, str))
        case bytearray():
            return _as_long(now, bytearray.fromhex(_is(value, str)))
        case dict():
            pairs = [cast("list[Value]", _is(pair, list)) for pair in _is(value, list)]
            return {_is(key, int): _is(one, int) for key, one in pairs}
        case list():
            return _as_long(now, [_is(one, int) for one in _is(value, list)])
        case deque():
            return deque(_element(one) for one in _is(value, list))
        case _:
            raise TypeError(type(now))


def _element(value: Value) -> int | tuple[int, ...]:
    return tuple(_is(one, int) for one in value) if isinstance(value, list) else _is(value, int)


def _is(value: Value, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise TypeError(value)
    return value


def _as_long(now: _Sized, value: _Sized) -> _Sized:
    if len(now) != len(value):
        raise ValueError(len(value))
    return value
