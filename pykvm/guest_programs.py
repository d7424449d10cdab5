"""Where the guest programs are: those of guests/, compiled by the package's build.

Reached from `machine` (init, for the default initrd), `doctor` and the tests. The sources and what
each program shows are in guests/; guests/build.py lists them.
"""

from __future__ import annotations

import os

from pykvm.errors import HostError

DIRECTORY = os.path.join(os.path.dirname(__file__), "guests")


def path(name: str) -> str:
    """The path of guest program `name`. Raises `HostError` when the build did not make it."""
    program = os.path.join(DIRECTORY, name)
    if not os.path.isfile(program):
        raise HostError(
            f"guest program {name!r} is not in {DIRECTORY}; "
            "`pip install .` (or `python setup.py build_ext -i` in a checkout) builds it"
        )
    return program


def names() -> list[str]:
    """The names of the guest programs there are."""
    try:
        return sorted(os.listdir(DIRECTORY))
    except FileNotFoundError:
        return []
