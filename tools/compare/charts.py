"""Bars as inline SVG: a group of bars on a logarithmic scale, and bars that are broken down into parts.

Knows geometry and nothing of what is drawn. Colours are names of the page's own variables, so that they follow light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_WIDTH, _LABEL, _VALUE, _BAR, _STEP, _TOP = 420, 78, 92, 11, 16, 16
_ROOM: Final = _WIDTH - _LABEL - _VALUE
_SHORTEST: Final = 1.5


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar. value: None for one that is not there, and then `text` says why. colour: a variable's name. tip: what hovering shows."""

    label: str
    value: float | None
    text: str
    colour: str
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """One bar of parts: (what, how much, colour) each."""

    label: str
    parts: Sequence[tuple[str, float, str]]
    text: str


def logarithmic(bars: Sequence[Bar], low: float, high: float, ticks: Sequence[tuple[float, str]]) -> str:
    """Bars from `low` to `high`, with lines at the ticks."""
    span = math.log10(high / low)

    def place(value: float) -> float:
        return _ROOM * min(1.0, max(0.0, math.log10(value / low) / span))

    lines = [
        f'<line class="grid" x1="{_LABEL + place(at):.1f}" x2="{_LABEL + place(at):.1f}" y1="{_TOP - 4}" y2="{_TOP + _STEP * len(bars)}"/>'
        f'<text class="faint" text-anchor="middle" x="{_LABEL + place(at):.1f}" y="9">{html.escape(text)}</text>'
        for at, text in ticks
    ]
    drawn = []
    for index, bar in enumerate(bars):
        length = 0.0 if bar.value is None else max(_SHORTEST, place(bar.value))
        rectangle = _rectangle(index, 0, length, bar.colour, bar.tip or f"{bar.label}: {bar.text}")
        drawn.append(_label(index, bar.label) + rectangle + _text(index, length, bar.text))
    return _svg(len(bars), [*lines, *drawn])


def broken_down(bars: Sequence[Parts], most: float) -> str:
    """Bars of parts, on a linear scale up to `most`."""
    drawn = []
    for index, bar in enumerate(bars):
        at = 0.0
        pieces = [_label(index, bar.label)]
        for what, amount, colour in bar.parts:
            length = _ROOM * amount / most if most else 0.0
            pieces.append(_rectangle(index, at, length, colour, f"{bar.label}: {amount:.3g} {what}"))
            at += length
        drawn.append("".join(pieces) + _text(index, at, bar.text))
    return _svg(len(bars), drawn)


def _svg(bars: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_TOP + _STEP * bars + 4}" role="img">{"".join(parts)}</svg>'


def _label(index: int, text: str) -> str:
    return f'<text text-anchor="end" x="{_LABEL - 6}" y="{_TOP + _STEP * index + _BAR - 1}">{html.escape(text)}</text>'


def _rectangle(index: int, at: float, length: float, colour: str, tip: str) -> str:
    where = f'x="{_LABEL + at:.1f}" y="{_TOP + _STEP * index}" width="{length:.1f}" height="{_BAR}"'
    return f'<rect {where} style="fill: var(--{colour})"><title>{html.escape(tip)}</title></rect>'


def _text(index: int, length: float, text: str) -> str:
    return f'<text class="faint" x="{_LABEL + length + 5:.1f}" y="{_TOP + _STEP * index + _BAR - 1}">{html.escape(text)}</text>'
