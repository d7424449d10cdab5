"""SVG, as much of it as our pictures need: shapes and text, in user units (pixels).

Reached from `plot` and `memorymap`. Source: Scalable Vector Graphics (SVG) 1.1, W3C.
"""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

FONT = "DejaVu Sans, Verdana, Helvetica, sans-serif"


def size_text(size: int) -> str:
    """Bytes as people write them: 4 KiB, 1.5 MiB."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"


class Drawing:
    """A picture that grows; `str()` of it is the SVG document."""

    def __init__(self, width: float) -> None:
        self.width = width
        self.height = 0.0  # grows with what is drawn
        self._parts: list[str] = []

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        opacity: float = 1.0,
        stroke: str = "none",
        title: str = "",
    ) -> None:
        """A rectangle; a viewer shows `title` under the pointer."""
        self.height = max(self.height, y + height)
        see_through = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
        shape = (
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{fill}"{see_through} stroke="{stroke}"'
        )
        self._parts.append(
            f"{shape}><title>{escape(title)}</title></rect>" if title else f"{shape}/>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str = "#bbb") -> None:
        self.height = max(self.height, y1, y2)
        self._parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 11,
        anchor: str = "start",
        fill: str = "#222",
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """A line of text; `y` is its baseline, `anchor` start, middle or end."""
        self.height = max(self.height, y + 4)
        weight = ' font-weight="bold"' if bold else ""
        family = ' font-family="DejaVu Sans Mono, monospace"' if mono else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor={quoteattr(anchor)} '
            f'fill="{fill}"{weight}{family}>{escape(text)}</text>'
        )

    def __str__(self) -> str:
        height = self.height + 12
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {height:.0f}" '
            f'width="{self.width:g}" height="{height:.0f}" font-family="{FONT}">\n'
            f'<rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )
