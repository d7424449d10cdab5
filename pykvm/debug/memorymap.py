"""A guest's memory as a picture: what pykvm put where, and where devices answer.

Reached from ``vm.memory.map()`` and from `plot`, which has it from a trace. Heights grow with the
logarithm of the size: a page table beside a gigabyte would be no line at all otherwise. Read
`layout`, which decides most of it.
"""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pykvm import layout
from pykvm._core import lib
from pykvm.debug.svg import Drawing, size_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pykvm.memory import GuestMemory

    Range = tuple[int, int, str]  # gpa, end, what is there

FREE: Final = "free memory"
RESERVED: Final = "reserved, as a PC's BIOS area"  # see `boot.e820`
WIDTH: Final = 460  # of the picture of a map alone
MARGIN: Final = 16
COLOURS: Final = {
    "free": "#eef3ee",
    "kernel": "#f7cf85",
    "initrd": "#b3dcf5",
    "tables": "#9bd8c4",
    "boot": "#f8f2a5",
    "device": "#ebc9dc",
    "reserved": "#dddddd",
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
        ("MP table", "tables"),
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


class MemoryMap(tuple[Block, ...]):
    """The whole map, by address, without a gap: lines of text, or a picture in a notebook."""

    __slots__ = ()

    @classmethod
    def of(cls, memory: GuestMemory) -> MemoryMap:
        """The map of a machine as it is now; what lies in memory is as its boot left it."""
        regions = [(region.gpa, region.end) for region in memory.regions]
        devices = [(gpa, end, device.name) for gpa, end, device in memory.devices or ()]
        return cls.drawn_up(regions, memory.placed, devices)

    @classmethod
    def of_trace(cls, machine: dict[str, Any]) -> MemoryMap:
        """The map of the machine that a trace describes."""
        devices = [row[1:] for row in machine["devices"] if row[0] == lib.PK_MMIO]
        return cls.drawn_up(machine["regions"], machine["placed"], devices)

    @classmethod
    def drawn_up(
        cls, regions: Sequence[tuple[int, int]], placed: Iterable[Range], devices: Iterable[Range]
    ) -> MemoryMap:
        """From what is memory, what a loader put there, and where devices answer."""
        taken = [Block(gpa, end, what, _kind(what)) for gpa, end, what in placed]
        taken += [Block(gpa, end, name, "device") for gpa, end, name in devices]
        taken += [
            Block(layout.IOAPIC, layout.IOAPIC + 0x1000, "IOAPIC (KVM's)", "device"),
            Block(layout.LAPIC, layout.LAPIC + 0x1000, "local APIC (KVM's)", "device"),
        ]
        backing = [part for low, high in sorted(regions) for part in _backing(low, high)]
        found: list[Block] = []
        at = 0
        for block in sorted(taken):
            found += _between(at, block.gpa, backing)
            if at < block.end:
                found.append(block._replace(gpa=max(at, block.gpa)))
            at = max(at, block.end)
        top = max(backing[-1].end, layout.MMIO_HOLE_END)
        return cls([*found, *_between(at, top, backing)])

    def __str__(self) -> str:
        """A line a block: first and last address, size, what is there."""
        return "\n".join(
            f"{block.gpa:#013x} - {block.end - 1:#013x}  {size_text(block.size):>8}  {block.what}"
            for block in self
        )

    __repr__ = __str__

    def svg(self) -> str:
        """The picture, an SVG document."""
        drawing = Drawing(WIDTH)
        draw(drawing, MARGIN, 26, WIDTH - 2 * MARGIN, self)
        return str(drawing)

    def _repr_svg_(self) -> str:
        return self.svg()


def _backing(low: int, high: int) -> list[Block]:
    """A region of memory, parted at what the guest is told not to use."""
    first, last = max(low, layout.EBDA), min(high, layout.HIGH_MEMORY)
    if first >= last:
        return [Block(low, high, FREE, "free")]
    parts = [Block(low, first, FREE, "free"), Block(first, last, RESERVED, "reserved")]
    return [part for part in (*parts, Block(last, high, FREE, "free")) if part.size]


def _between(start: int, end: int, backing: list[Block]) -> list[Block]:
    """[start, end) where nothing was placed: memory and holes."""
    found, at = [], start
    for block in backing:
        low, high = max(block.gpa, start), min(block.end, end)
        if low >= high:
            continue
        if at < low:
            found.append(Block(at, low, "nothing", "hole"))
        found.append(block._replace(gpa=low, end=high))
        at = high
    if at < end:
        found.append(Block(at, end, "nothing", "hole"))
    return found


def draw(drawing: Drawing, x: float, y: float, width: float, blocks: MemoryMap) -> None:
    """Draw the map with its top left corner at (x, y)."""
    drawing.text(x, y, "guest memory", size=13, bold=True)
    drawing.text(x + width, y, "heights: log of the size", size=9, anchor="end", fill="#777")
    y += 14
    left, room = x + ADDRESS_WIDTH, width - ADDRESS_WIDTH
    for block in blocks:
        height = ROW + GROWTH * max(0.0, log2(max(block.size, 1) / 65536))
        dashed = "#ddd" if block.kind == "hole" else "#888"
        title = f"[{block.gpa:#x}, {block.end:#x}) {block.what}"
        fill = COLOURS[block.kind]
        drawing.rect(left, y, room, height, fill, stroke=dashed, title=title)
        drawing.text(x + ADDRESS_WIDTH - 6, y + 10, f"{block.gpa:#x}", anchor="end", mono=True)
        grey = "#999" if block.kind in ("hole", "free", "reserved") else "#222"
        drawing.text(left + 6, y + height / 2 + 4, block.what.removeprefix("the "), fill=grey)
        size = size_text(block.size)
        drawing.text(left + room - 6, y + height / 2 + 4, size, anchor="end", fill="#666", size=10)
        y += height
    drawing.text(x + ADDRESS_WIDTH - 6, y + 10, f"{blocks[-1].end:#x}", anchor="end", mono=True)
