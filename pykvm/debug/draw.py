"""Page walks as pictures: text for a terminal and for gdb's ``monitor pt``, HTML for a notebook.

Reached from `pagewalk.Walk`, when one is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.debug.pagewalk import Level, Walk


def size_name(size: int) -> str:
    """4096 as ``4 KiB``: page sizes are powers of two."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} bytes"


def walk_text(walk: Walk) -> str:
    """The walk in lines, one a level::

    0xffffffff81000123: 4-level paging, CR3 at 0x2610000
    └ PML4E[511]  at 0x2610ff8   0x0000000002615067  ----A--UWP
      └ PDPTE[510]  ...
    """
    lines = [f"{walk.gva:#x}: {walk.mode}" + (f", CR3 at {walk.root:#x}" if walk.root else "")]
    width = max((len(_place(level)) + 2 * i for i, level in enumerate(walk.levels)), default=0)
    for depth, level in enumerate(walk.levels):
        head = "  " * depth + f"└ {_place(level)}"
        names = ", ".join(level.flags) or "nothing set"
        digits = 8 if walk.mode == "32-bit paging" else 16
        lines.append(
            f"{head:{width + 2}}  at {level.gpa:#011x}  {level.value:0{digits}x}  "
            f"{level.letters}  {names}"
        )
    end = "  " * len(walk.levels)
    if walk.gpa is None:
        lines.append(f"{end}✗ not mapped: {walk.why}")
    elif walk.page:
        offset = walk.gpa % walk.page
        lines.append(
            f"{end}= gpa {walk.gpa:#x}: byte {offset:#x} of the {size_name(walk.page)} page at "
            f"{walk.gpa - offset:#x}"
        )
    else:
        lines.append(f"{end}= gpa {walk.gpa:#x}")
    return "\n".join(lines)


def _place(level: Level) -> str:
    return f"{level.name}[{level.place}]"


def walk_html(walk: Walk) -> str:
    """The walk as a table of HTML."""
    rows = "".join(
        f"<tr><td>{_place(level)}</td><td><code>{level.gpa:#x}</code></td>"
        f"<td><code>{level.value:#x}</code></td><td>{', '.join(level.flags)}</td></tr>"
        for level in walk.levels
    )
    end = f"gpa <code>{walk.gpa:#x}</code>" if walk.gpa is not None else f"not mapped: {walk.why}"
    if walk.page:
        end += f" ({size_name(walk.page)} page)"
    return (
        f"<table><caption><code>{walk.gva:#x}</code>: {walk.mode}</caption>"
        "<tr><th>entry</th><th>at</th><th>value</th><th>flags</th></tr>"
        f"{rows}<tr><td colspan=4>{end}</td></tr></table>"
    )


def hexdump(address: int, data: bytes | bytearray) -> str:
    """Lines of 16 bytes: address, hexadecimal, and what is printable."""
    lines = []
    for at in range(0, len(data), 16):
        row = bytes(data[at : at + 16])
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{address + at:#011x}  {row.hex(' '):47}  {text}")
    return "\n".join(lines)
