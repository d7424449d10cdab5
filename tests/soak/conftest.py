"""Tests that take minutes to hours: ``make soak``. Nothing else collects this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

LIMIT_S = 3 * 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time than `timeout` in pyproject.toml gives the others."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(LIMIT_S))
