from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import _cffi_backend
import pytest

import pykvm
from pykvm.lean import Record


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


def test_booting_loads_no_slow_modules() -> None:
    slow = ("typing", "dataclasses", "re", "argparse", "inspect", "pathlib", "subprocess")
    # -S: what site and other packages' .pth files import is not ours.
    folders = [str(Path(file).parent) for file in (_cffi_backend.__file__, pykvm.__path__[0])]
    code = f"import sys; sys.path[:0] = {folders}; import pykvm.cli_boot, pykvm.machine; "
    code += f"print(*sorted(set(sys.modules) & set({slow})))"
    command = [sys.executable, "-S", "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
