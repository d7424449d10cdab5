"""Kernel releases, as `uname -r` prints them: which one a pattern means, and which is newer.

Reached from `boot.kernels` and `boot.kernel_build`, which document the patterns for people. Read
Debian Policy 4.7 §5.6.12 "Version" for the order, and deb-version(7).

A release is a version and a flavour: ``6.12.117+deb12`` and ``cloud-amd64``, ``6.1.0-55`` and
``amd64``. The version's dash-separated parts start with a digit, the flavour does not.
"""

from __future__ import annotations

import re
from typing import Final

ARCHITECTURE: Final = "amd64"  # Debian's name for x86-64; its flavours end in it
DEFAULT_FLAVOUR: Final = "cloud"
GENERIC: Final = "generic"  # people's name for Debian's flavour "amd64", as Ubuntu calls its own

_RELEASE: Final = re.compile(r"(\d[\w.+~]*(?:-\d[\w.+~]*)*)?-?([A-Za-z].*)?")
_COMPLETE: Final = re.compile(r"\d+\.\d+\.\d")


def matches(pattern: str, release: str) -> bool:
    """Tell whether `pattern` means `release`: equal, or the same version start and flavour.

    The version matches by whole numbers from the left: 6.1 means 6.1.0-55 and not 6.12.117. A
    pattern without a flavour means the cloud kernel's. A flavour may leave out its "-amd64".
    """
    if pattern == release:
        return True
    wanted, found = _RELEASE.fullmatch(pattern), _RELEASE.fullmatch(release)
    if not wanted or not found:
        return False
    version, flavour = wanted[1] or "", wanted[2] or DEFAULT_FLAVOUR
    if version and not re.match(rf"{re.escape(version)}(?!\w)", found[1] or ""):
        return False
    flavours = {flavour, f"{flavour}-{ARCHITECTURE}"}
    return found[2] in (flavours | {ARCHITECTURE} if flavour == GENERIC else flavours)


def is_complete(release: str) -> bool:
    """Tell a kernel's release from a metapackage's (6.12-cloud-amd64), which has two numbers."""
    return bool(_COMPLETE.match(release))


def age_key(release: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Return a key that sorts releases, and versions of packages, from old to new.

    Debian Policy 4.7 §5.6.12 "Version": parts without and with digits by turns; in those without,
    "~" sorts before the part's end, that before letters, and those before everything else. A dash
    ends what is before it, so a plain 6.12.117-x is older than 6.12.117+deb12-x.
    """
    parts = re.findall(r"(\D*)(\d*)", release)
    return tuple(((*map(_rank, text), 0), int(digits or 0)) for text, digits in parts)


def _rank(char: str) -> int:
    if char in "~-":
        return -1 if char == "~" else 0
    return ord(char) if char.isalpha() else ord(char) + 0x11_0000  # after every letter
