"""A dump as a page: one file that needs no other, with the JSON form in it.

Knows the page's parts, which stand beside this file, and how text is put into HTML. Everything that is seen is made by the page's script.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from importlib.resources import files
from typing import TextIO

from tools.dump import as_json
from tools.dump.model import Block, Dump


def write(dump: Dump, file: TextIO, blocks: Iterable[Block]) -> None:
    """Writes the page, with `blocks` as they come."""
    folder = files("tools.dump")
    page, style, script = ((folder / name).read_text("utf-8") for name in ("page.html", "page.css", "page.js"))
    before, behind = page.replace("{title}", html.escape(dump.kernel)).replace("{style}", style).split("{data}")
    file.write(before)
    for chunk in as_json.chunks(dump, blocks):
        file.write(chunk.replace("<", "\\u003c"))  # inside JSON only texts have one, and </script> would end it
    file.write(behind.replace("{script}", script))
