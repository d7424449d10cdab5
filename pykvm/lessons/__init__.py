"""The course: twelve lessons, each a page that runs.

Reached from `cli_lesson`. A page (docs/lessons/) is text, pictures, Python and what that Python
prints; `page` reads it, `play` carries it out, `exercise` judges what a learner made of it. The
programs that run as guests, the host side as a file, and the solutions are in guests/FOLDER.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pykvm import guest_programs
from pykvm.errors import ConfigError, HostError


class Lesson(NamedTuple):
    """A lesson: its number, the folder below guests/ and the page below docs/lessons/."""

    number: int
    folder: str
    page: str
    title: str

    @property
    def path(self) -> Path:
        """The folder with the guest, `host.py`, `exercises.py` and the solutions."""
        return guests_folder() / self.folder

    @property
    def text(self) -> str:
        """The page, in Markdown."""
        return (pages_folder() / self.page).read_text(encoding="utf-8")


LESSONS = (
    Lesson(1, "by-hand", "01-by-hand.md", "A virtual machine in one file"),
    Lesson(2, "hello-real", "02-real-mode.md", "Real mode and port I/O"),
    Lesson(3, "modes", "03-modes.md", "Into protected and long mode"),
    Lesson(4, "exceptions", "04-exceptions.md", "Exceptions and the IDT"),
    Lesson(5, "timer", "05-timer.md", "Timers and the APIC"),
    Lesson(6, "smp", "06-smp.md", "A second CPU"),
    Lesson(7, "mmio", "07-mmio.md", "MMIO, and a device of your own"),
    Lesson(8, "entropy", "08-virtqueue.md", "A virtqueue by hand"),
    Lesson(9, "ring3", "09-ring3.md", "Ring 3 and system calls"),
    Lesson(10, "tiny-linux", "10-linux.md", "The Linux boot protocol"),
    Lesson(11, "dirty", "11-snapshot.md", "Dirty logging, and a snapshot by hand"),
    Lesson(12, "exits", "12-exits.md", "What an exit costs"),
)

_CHECKOUT = Path(__file__).resolve().parents[2]
_PACKAGED = Path(guest_programs.DIRECTORY) / "course"


def find(number: int) -> Lesson:
    """Lesson `number`. Raises `ConfigError`."""
    if not 1 <= number <= len(LESSONS):
        raise ConfigError(f"LESSON: there is no lesson {number}; write 1 to {len(LESSONS)}")
    return LESSONS[number - 1]


def guests_folder() -> Path:
    """Where the sources of the guests are: the checkout's, or what the build packed."""
    return _existing(_CHECKOUT / "guests", _PACKAGED / "guests")


def pages_folder() -> Path:
    """Where the pages are."""
    return _existing(_CHECKOUT / "docs" / "lessons", _PACKAGED / "lessons")


def _existing(*folders: Path) -> Path:
    for folder in folders:
        if folder.is_dir():
            return folder
    raise HostError("the course is not in this installation; install pykvm again")
