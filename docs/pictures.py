"""Draws the pictures of the lessons: ``python docs/pictures.py`` writes them where the pages are.

Each picture is a function below, in the order of the lessons. A test compares what they draw with
what is in the repository, so a picture never tells what is no longer so. Sizes are in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from pykvm import layout

FOLDER = Path(__file__).resolve().parent / "lessons" / "pictures"

PAPER, GUEST, KERNEL, OURS, MARK = "#ffffff", "#e3f0ff", "#fff2d6", "#e4f5e1", "#ffe1e1"
INK, GREY = "#24292f", "#6e7781"
FONT = "DejaVu Sans, Verdana, sans-serif"
MONO = "DejaVu Sans Mono, Menlo, monospace"

Point = tuple[float, float]


class Picture:
    """An SVG picture being drawn. Colours say whose a thing is: the guest's, the kernel's, ours."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._parts: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        text: str = "",
        fill: str = PAPER,
        *,
        mono: bool = False,
        size: int = 13,
    ) -> None:
        """A rectangle with `text` in its middle, a line for each of its lines."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" '
            f'fill="{fill}" stroke="{INK}"/>'
        )
        lines = text.splitlines()
        top = y + height / 2 - (len(lines) - 1) * (size + 4) / 2 + size * 0.36
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + number * (size + 4), line, size=size, mono=mono)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 13,
        anchor: str = "middle",
        mono: bool = False,
        colour: str = INK,
    ) -> None:
        """One line of text whose base line is at `y`."""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
            f'font-family="{MONO if mono else FONT}" xml:space="preserve">{escape(text)}</text>'
        )

    def arrow(self, *points: Point, label: str = "", dashed: bool = False) -> None:
        """A line through `points` with a head at its end; `label` is over its first part."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.4" '
            f'marker-end="url(#head)"{dash}/>'
        )
        if label:
            (x1, y1), (x2, y2) = points[:2]
            self.text((x1 + x2) / 2, (y1 + y2) / 2 - 6, label, size=12, colour=GREY)

    def svg(self) -> str:
        """The whole picture."""
        width, height = self._size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}">\n'
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            f'markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/>'
            "</marker></defs>\n"
            f'<rect width="{width}" height="{height}" fill="{PAPER}"/>\n'
        )
        return head + "\n".join(self._parts) + "\n</svg>\n"


def descriptors() -> Picture:
    p = Picture(760, 250)
    p.text(150, 24, "this process", colour=GREY)
    p.text(560, 24, "the kernel", colour=GREY)
    rows = (
        ("kvm", "/dev/kvm", "open"),
        ("vm", "a machine: memory slots", "KVM_CREATE_VM"),
        ("vcpu", "a processor: registers", "KVM_CREATE_VCPU"),
    )
    for number, (name, thing, call) in enumerate(rows):
        y = 40 + 52 * number
        p.box(80, y, 140, 36, f"descriptor {name}", OURS)
        p.box(450, y, 220, 36, thing, KERNEL)
        p.arrow((220, y + 18), (450, y + 18), label=call)
    p.box(80, 196, 140, 36, "memory, kvm_run", OURS)
    p.arrow((220, 214), (560, 214), (560, 180), label="mmap: the same pages")
    return p


def exit_way() -> Picture:
    p = Picture(760, 220)
    steps = (
        ("guest\nout %al, %dx", GUEST),
        ("KVM\nno device there", KERNEL),
        ("KVM_RUN returns\nKVM_EXIT_IO", KERNEL),
        ("pk_vcpu_run()\ncsrc/vcpu.c", OURS),
    )
    for number, (text, fill) in enumerate(steps):
        p.box(20 + 186 * number, 30, 156, 56, text, fill)
        if number:
            p.arrow((186 * number - 10, 58), (20 + 186 * number, 58))
    p.box(392, 140, 156, 56, "C answers\ncsrc/serial.c", OURS)
    p.box(578, 140, 156, 56, "Python answers\nBus, Device.write", OURS)
    p.arrow((640, 86), (490, 140))
    p.arrow((660, 86), (660, 140))
    p.arrow((392, 168), (98, 168), (98, 86), label="KVM_RUN again: the guest goes on")
    return p


def paging() -> Picture:
    p = Picture(760, 250)
    fields = (
        ("47   PML4   39", 130),
        ("38   PDPT   30", 130),
        ("29   PD   21", 130),
        ("20   PT   12", 130),
        ("11   offset   0", 150),
    )
    x = 40.0
    centres = []
    for text, width in fields:
        p.box(x, 20, width, 30, text, GUEST, size=12)
        centres.append(x + width / 2)
        x += width
    names = ("PML4", "PDPT", "page\ndirectory", "page\ntable", "page\n4 KiB")
    for number, (name, centre) in enumerate(zip(names, centres, strict=True)):
        p.box(centre - 42, 110, 84, 100, name, KERNEL if number < 4 else GUEST)
        p.arrow((centre, 50), (centre, 110))
        if number < 4:
            p.arrow((centre + 42, 160), (centres[number + 1] - 42, 160))
    p.text(24, 238, "CR3 points to the first table", anchor="start", colour=GREY)
    p.arrow((30, 224), (30, 160), (centres[0] - 42, 160))
    p.text(
        736,
        238,
        "bit 7 of a directory's entry: a page of 2 MiB, no table",
        anchor="end",
        colour=GREY,
    )
    return p


def exception() -> Picture:
    p = Picture(760, 270)
    p.box(30, 40, 190, 44, "mov %al, (%rbx)", GUEST, mono=True)
    p.text(125, 28, "the instruction that fails", colour=GREY)
    p.text(380, 28, "the IDT: 256 gates of 16 bytes", colour=GREY)
    for number, name in enumerate(("#DE", "…", "#GP", "#PF", "…")):
        p.box(310, 40 + 30 * number, 140, 30, f"{(0, '', 13, 14, '')[number]}  {name}", KERNEL)
    p.arrow((220, 62), (265, 62), (265, 145), (310, 145), label="14")
    p.box(560, 123, 170, 44, "page_fault()", GUEST, mono=True)
    p.arrow((450, 145), (560, 145), label="address")
    p.text(125, 116, "pushed onto the stack", colour=GREY)
    for number, name in enumerate(("SS", "RSP", "RFLAGS", "CS", "RIP", "error code")):
        p.box(60, 124 + 22 * number, 130, 22, name, MARK if number == 5 else PAPER, size=12)
    p.arrow((645, 167), (645, 215), (190, 215), dashed=True)
    p.text(420, 209, "IRETQ takes them back", size=12, colour=GREY)
    return p


def timer() -> Picture:
    p = Picture(760, 230)
    p.box(30, 40, 150, 50, "PIT (8254)\n1,193,182 Hz", KERNEL)
    p.box(250, 40, 150, 50, "PIC (8259A)\nIRQ 0: vector 0x20", KERNEL)
    p.box(470, 30, 260, 170, "", KERNEL)
    p.text(600, 50, "local APIC, 0xFEE00000")
    p.box(490, 62, 100, 34, "LINT0", PAPER)
    p.box(490, 112, 220, 34, "timer: LVT, count, divide", PAPER)
    p.arrow((180, 65), (250, 65), label="IRQ 0")
    p.arrow((400, 65), (445, 65), (445, 79), (490, 79), label="INTR")
    p.box(250, 150, 150, 50, "vCPU\nhandler by vector", GUEST)
    p.arrow((490, 129), (440, 129), (440, 165), (400, 165))
    p.arrow((540, 96), (540, 104), (455, 104), (455, 185), (400, 185))
    p.text(30, 180, "EOI tells the controller:", anchor="start", colour=GREY)
    p.text(30, 197, "served, the next one please", anchor="start", colour=GREY)
    return p


def smp() -> Picture:
    p = Picture(760, 240)
    p.box(30, 30, 130, 40, "CPU 0", GUEST)
    p.box(600, 30, 130, 40, "CPU 1", GUEST)
    p.arrow((95, 70), (95, 220))
    p.arrow((665, 70), (665, 220))
    p.arrow((95, 100), (665, 100), label="INIT: reset, then wait")
    p.arrow((95, 140), (665, 140), label="SIPI 0x08: begin in the page at 0x8000, in real mode")
    p.arrow((665, 190), (95, 190), label="lock incw counter")
    p.text(83, 128, "writes to its", size=11, anchor="end", colour=GREY)
    p.text(83, 142, "local APIC's", size=11, anchor="end", colour=GREY)
    p.text(83, 156, "ICR", size=11, anchor="end", colour=GREY)
    return p


def hole() -> Picture:
    p = Picture(760, 330)
    p.text(200, 24, "guest-physical addresses", colour=GREY)
    rows = (
        ("high memory: the rest", GUEST, 50, layout.MMIO_HOLE_END),
        ("local APIC, IOAPIC (KVM)", KERNEL, 40, layout.IOAPIC),
        ("nothing", PAPER, 34, None),
        ("your device: 4 KiB", OURS, 40, 0xD000_0000),
        ("nothing", PAPER, 34, layout.MMIO_HOLE),
        ("low memory, up to 3 GiB", GUEST, 70, 0),
    )
    y = 36
    for text, fill, height, address in rows:
        p.box(200, y, 240, height, text, fill)
        if address is not None:
            p.text(190, y + height - 4, f"{address:#013_x}", anchor="end", mono=True, size=12)
        y += height
    p.box(540, 60, 180, 50, "a memory slot:\nno exit", KERNEL)
    p.arrow((440, 61), (540, 75))
    p.arrow((440, 268), (500, 268), (500, 95), (540, 95))
    p.box(540, 170, 180, 50, "KVM_EXIT_MMIO:\nDevice.read, .write", OURS)
    p.arrow((440, 182), (540, 190))
    return p


def virtqueue() -> Picture:
    p = Picture(760, 304)
    p.text(380, 24, "guest memory", colour=GREY)
    p.box(150, 36, 460, 220, "", GUEST)
    p.text(210, 60, "available ring")
    p.box(170, 68, 90, 26, "idx  1", PAPER, mono=True, size=12)
    p.box(170, 94, 90, 26, "[0]  0", MARK, mono=True, size=12)
    p.box(170, 120, 90, 26, "[1]", PAPER, mono=True, size=12)
    p.text(380, 60, "descriptor table")
    p.box(300, 94, 160, 26, "0: addr len WRITE", MARK, mono=True, size=12)
    p.box(300, 120, 160, 26, "1:", PAPER, mono=True, size=12)
    p.text(550, 60, "used ring")
    p.box(500, 68, 96, 26, "idx  1", PAPER, mono=True, size=12)
    p.box(500, 94, 96, 26, "[0]  0, 16", MARK, mono=True, size=12)
    p.box(500, 120, 96, 26, "[1]", PAPER, mono=True, size=12)
    p.arrow((260, 107), (300, 107))
    p.arrow((500, 107), (460, 107))
    p.box(300, 200, 160, 34, "buffer, 16 bytes", PAPER)
    p.arrow((330, 120), (330, 200))
    p.box(20, 90, 100, 44, "driver", GUEST)
    p.box(640, 90, 100, 44, "device", OURS)
    p.arrow((120, 107), (170, 107))
    p.arrow((640, 107), (596, 107))
    p.arrow((690, 134), (690, 217), (460, 217), label="")
    p.text(540, 210, "the bytes", size=12, colour=GREY)
    p.arrow((70, 134), (70, 275), (715, 275), (715, 134))
    p.text(380, 292, "notify: one register write", size=12, colour=GREY)
    return p


def rings() -> Picture:
    p = Picture(760, 230)
    p.box(40, 30, 680, 60, "", KERNEL)
    p.text(60, 66, "ring 0", anchor="start")
    p.box(40, 140, 680, 60, "", GUEST)
    p.text(60, 176, "ring 3", anchor="start")
    p.box(150, 42, 130, 36, "IRETQ", PAPER, mono=True)
    p.arrow((215, 78), (215, 152), label="")
    p.text(207, 120, "CS, SS of ring 3", anchor="end", size=12, colour=GREY)
    p.box(150, 152, 130, 36, "user()", PAPER, mono=True)
    p.box(350, 152, 130, 36, "int $0x80", PAPER, mono=True)
    p.arrow((280, 170), (350, 170))
    p.box(350, 42, 130, 36, "syscall_entry()", PAPER, mono=True, size=12)
    p.arrow((400, 152), (400, 78))
    p.text(392, 120, "stack from the TSS", anchor="end", size=12, colour=GREY)
    p.arrow((435, 78), (435, 152))
    p.box(560, 152, 130, 36, "hlt", MARK, mono=True)
    p.arrow((480, 170), (560, 170))
    p.box(560, 42, 130, 36, "#GP", PAPER)
    p.arrow((625, 152), (625, 78))
    return p


def bzimage() -> Picture:
    p = Picture(760, 270)
    p.text(130, 24, "the file", colour=GREY)
    p.box(50, 36, 160, 34, "boot sector", PAPER)
    p.box(50, 70, 160, 34, "setup header, HdrS", MARK)
    p.box(50, 104, 160, 34, "16-bit code", PAPER)
    p.box(50, 138, 160, 110, "kernel\n(compressed)", KERNEL)
    p.text(600, 24, "guest memory", colour=GREY)
    p.box(500, 36, 210, 34, f"boot_params, {layout.ZERO_PAGE:#x}", MARK)
    p.box(500, 80, 210, 34, f"command line, {layout.CMDLINE:#x}", GUEST)
    p.box(500, 124, 210, 70, "kernel, 0x100000\n64-bit entry at + 0x200", KERNEL)
    p.box(500, 210, 210, 34, "initrd, at the top", GUEST)
    p.arrow((210, 87), (360, 87), (360, 53), (500, 53))
    p.text(285, 80, "copied, then completed", size=12, colour=GREY)
    p.arrow((210, 190), (360, 190), (360, 160), (500, 160))
    p.text(285, 183, "decompressed", size=12, colour=GREY)
    p.arrow((710, 60), (735, 60), (735, 97), (710, 97))
    p.text(355, 262, "RSI = boot_params, RIP = the entry", colour=GREY)
    return p


def dirty() -> Picture:
    p = Picture(760, 200)
    p.text(30, 40, "memory, a page each", anchor="start", colour=GREY)
    p.text(118, 110, "KVM's bitmap", anchor="start", colour=GREY)
    pages = [f"{page:x}" for page in range(0x400, 0x40E)]
    for number, page in enumerate(["stack", "", *pages]):
        x = 30 + 44 * number
        if not page:
            p.text(x + 22, 72, "…")
            p.text(x + 22, 140, "…")
            continue
        written = page in ("stack", "404", "405", "406")
        p.box(x, 50, 44, 34, page, MARK if written else GUEST, mono=True, size=11)
        p.box(x, 120, 44, 30, str(int(written)), KERNEL, mono=True)
        if written:
            p.arrow((x + 22, 84), (x + 22, 120))
    p.text(30, 182, "going back copies four pages, however large the memory is", anchor="start")
    return p


def costs() -> Picture:
    p = Picture(760, 230)
    rows = (
        ("answered in KVM", 170, "local APIC, PIT, CPUID"),
        ("answered in C", 400, "KVM_RUN returns, pk_bus_access(), KVM_RUN"),
        ("answered in Python", 560, "… and pk_vcpu_run() returns, Bus.write(), Device.write()"),
    )
    for number, (name, width, text) in enumerate(rows):
        y = 30 + 64 * number
        p.text(160, y + 20, name, anchor="end")
        p.box(170, y, 60, 30, "guest", GUEST, size=12)
        p.box(230, y, min(width, 170) - 60, 30, "kernel", KERNEL, size=12)
        if width > 170:
            p.box(340, y, width - 170, 30, "this process", OURS, size=12)
        p.text(170, y + 48, text, size=12, anchor="start", colour=GREY)
    p.text(740, 222, "not to scale: measure", size=12, anchor="end", colour=GREY)
    return p


PICTURES: dict[str, Callable[[], Picture]] = {
    "01-descriptors.svg": descriptors,
    "02-exit.svg": exit_way,
    "03-paging.svg": paging,
    "04-exception.svg": exception,
    "05-timer.svg": timer,
    "06-smp.svg": smp,
    "07-hole.svg": hole,
    "08-virtqueue.svg": virtqueue,
    "09-rings.svg": rings,
    "10-bzimage.svg": bzimage,
    "11-dirty.svg": dirty,
    "12-costs.svg": costs,
}


def main() -> None:
    """Draw them all."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw().svg())


if __name__ == "__main__":
    main()
