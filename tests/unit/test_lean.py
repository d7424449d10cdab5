from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import _cffi_backend
import pytest

import pykvm
from pykvm.lean import Enum, IntFlag, Record


class Point(Record):
    """A record with a default."""

    x: int
    y: int = 2

    def norm(self) -> int:
        return self.x**2 + self.y**2


def test_fields_are_given_by_place_by_name_or_by_default() -> None:
    assert (Point(1), Point(1, 2), Point(y=2, x=1)) == (Point(x=1),) * 3
    assert (Point(3, 4).x, Point(3, 4).y, Point(3, 4).norm()) == (3, 4, 25)


def test_a_record_is_a_tuple_that_says_its_names() -> None:
    x, y = Point(3, 4)
    assert (x, y) == (3, 4)
    assert repr(Point(3, 4)) == "Point(x=3, y=4)"


def test_replace_makes_another_record() -> None:
    point = Point(3, 4)
    assert point._replace(y=5) == Point(3, 5)
    assert point == Point(3, 4)


def test_a_field_cannot_be_set() -> None:
    with pytest.raises(AttributeError):
        Point(3).x = 4  # type: ignore[misc]


def test_a_record_can_be_copied() -> None:
    assert copy.deepcopy(Point(3, 4)) == Point(3, 4)


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"x": 2}), ((1,), {"z": 3}), ((), {"y": 1})],
)
def test_wrong_values_are_refused(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        Point(*values, **named)


class Colour(Enum):
    """An enumeration."""

    RED = "red"
    BLUE = "blue"


class Bit(IntFlag):
    """Flags."""

    LOW = 1 << 0
    HIGH = 1 << 7


def test_members_have_a_name_and_a_value_and_are_found_by_it() -> None:
    assert (Colour.RED.name, Colour.RED.value) == ("RED", "red")
    assert Colour("blue") is Colour.BLUE
    assert list(Colour) == [Colour.RED, Colour.BLUE]
    with pytest.raises(ValueError, match="'green' is not a Colour"):
        Colour("green")


def test_there_is_one_of_each_member() -> None:
    assert copy.deepcopy(Colour.RED) is Colour.RED
    assert {Colour.RED: 1}[Colour("red")] == 1
    assert repr(Colour.RED) == "Colour.RED"


def test_flags_are_integers() -> None:
    assert Bit.LOW | Bit.HIGH == 0x81
    assert Bit(3) & Bit.LOW == 1


SLOW = ("typing", "enum", "dataclasses", "re", "argparse", "inspect", "pathlib", "subprocess")


@pytest.mark.parametrize(
    "modules",
    [
        "pykvm.cli_boot, pykvm.machine",
        "pykvm.boot.guestimage, pykvm.boot.bzimage, pykvm.boot.linux64",
        "pykvm.boot.vmlinuxcache as cache; cache.recall('1'); cache.lookup('1' * 64)",
        "pykvm.cli_restore, pykvm.machine, pykvm.snapshot.load",
    ],
)
def test_booting_and_restoring_load_no_slow_modules(modules: str) -> None:
    # -S: what site and other packages' .pth files import is not ours.
    folders = [str(Path(file).parent) for file in (_cffi_backend.__file__, pykvm.__path__[0])]
    code = f"import sys; sys.path[:0] = {folders}; import {modules}; "
    code += f"print(*sorted(set(sys.modules) & set({SLOW})))"
    command = [sys.executable, "-S", "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
