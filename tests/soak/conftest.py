"""Tests that take minutes to hours: ``make soak``. Nothing else collects this folder."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm.lab import Lab

LIMIT_S = 3 * 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time than `timeout` in pyproject.toml gives the others."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab of the module's own."""
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def disk_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/linux/disk.c, compiled."""
    target = tmp_path_factory.mktemp("guest") / "disk"
    source = Path(__file__).resolve().parents[1] / "linux" / "disk.c"
    command = ["gcc", "-O1", "-static", "-o", str(target), str(source)]
    subprocess.run(command, check=True, timeout=60)
    return target
