"""A guest's memory as a picture: what pykvm put where, and where devices answer.

Reached from `plot`, which has it from a trace. Heights grow with the logarithm of the size: a page
table beside a gigabyte would be no line at all otherwise.
"""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pykvm import layout
from pykvm._core import lib
from pykvm.debug.svg import Drawing, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

FREE: Final = "free memory"
COLOURS: Final = {
    "free": "#eef3ee",
    "kernel": "#f7cf85",
    "initrd": "#b3dcf5",
    "tables": "#9bd8c4",
    "boot": "#f8f2a5",
    "device": "#ebc9dc",
    "hole": "#ffffff",
}  # Okabe and Ito's, lightened: text stands on them
ADDRESS_WIDTH: Final = 104  # of the addresses beside the blocks
ROW: Final = 15.0  # height of the smallest block
GROWTH: Final = 2.2  # for each doubling from 64 KiB on


class Block(NamedTuple):
    """A range of guest-physical addresses, and what is there."""

    gpa: int
    end: int
    what: str
    kind: str  # of COLOURS

    @property
    def size(self) -> int:
        return self.end - self.gpa


def _kind(what: str) -> str:
    for word, kind in (
        ("page tables", "tables"),
        ("ACPI", "tables"),
        ("GDT", "tables"),
        ("kernel", "kernel"),
        ("binary", "kernel"),
        ("setup code", "kernel"),
        ("initrd", "initrd"),
        ("module", "initrd"),
    ):
        if word in what:
            return kind
    return "boot"


def blocks(machine: dict[str, Any]) -> list[Block]:
    """The whole map, by address, without a gap; `machine` is what a trace says of it."""
    taken = [Block(gpa, end, what, _kind(what)) for gpa, end, what in machine["placed"]]
    taken += [
        Block(base, end, name, "device")
        for space, base, end, name in machine["devices"]
        if space == lib.PK_MMIO
    ]
    taken += [
        Block(layout.IOAPIC, layout.IOAPIC + 0x1000, "IOAPIC (KVM's)", "device"),
        Block(layout.LAPIC, layout.LAPIC + 0x1000, "local APIC (KVM's)", "device"),
    ]
    found: list[Block] = []
    regions: Sequence[tuple[int, int]] = machine["regions"]
    at = 0
    for block in sorted(taken):
        found += _between(at, block.gpa, regions)
        if block.gpa >= at:
            found.append(block)
        at = max(at, block.end)
    top = max(end for _, end in regions)
    return [*found, *_between(at, max(top, layout.MMIO_HOLE_END), regions)]


def _between(start: int, end: int, regions: Sequence[tuple[int, int]]) -> list[Block]:
    """[start, end) where nothing was placed: memory and holes."""
    found, at = [], start
    for low, high in sorted(regions):
        low, high = max(low, start), min(high, end)
        if low >= high:
            continue
        if at < low:
            found.append(Block(at, low, "nothing", "hole"))
        found.append(Block(low, high, FREE, "free"))
        at = high
    if at < end:
        found.append(Block(at, end, "nothing", "hole"))
    return found


def draw(drawing: Drawing, x: float, y: float, width: float, machine: dict[str, Any]) -> None:
    """Draw the map with its top left corner at (x, y)."""
    drawing.text(x, y, "guest memory", size=13, bold=True)
    drawing.text(x + width, y, "heights: log of the size", size=9, anchor="end", fill="#777")
    y += 14
    left, room = x + ADDRESS_WIDTH, width - ADDRESS_WIDTH
    for block in blocks(machine):
        height = ROW + GROWTH * max(0.0, log2(max(block.size, 1) / 65536))
        dashed = "#ddd" if block.kind == "hole" else "#888"
        title = f"[{block.gpa:#x}, {block.end:#x}) {block.what}"
        fill = COLOURS[block.kind]
        drawing.rect(left, y, room, height, fill, stroke=dashed, title=title)
        drawing.text(x + ADDRESS_WIDTH - 6, y + 10, f"{block.gpa:#x}", anchor="end", mono=True)
        grey = "#999" if block.kind in ("hole", "free") else "#222"
        drawing.text(left + 6, y + height / 2 + 4, block.what.removeprefix("the "), fill=grey)
        size = size_text(block.size)
        drawing.text(left + room - 6, y + height / 2 + 4, size, anchor="end", fill="#666", size=10)
        y += height
    end = blocks(machine)[-1].end
    drawing.text(x + ADDRESS_WIDTH - 6, y + 10, f"{end:#x}", anchor="end", mono=True)
