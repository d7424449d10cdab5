"""For all tests: hypothesis asserts nothing about time, which busy machines have little of.

In CI it takes the same examples every time: a change is judged by what it changed, not by luck.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("untimed"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "untimed")

PATIENCE_S = 20.0


@pytest.fixture
def threads() -> Callable[..., int]:
    """``threads()``: how many this process has, as the kernel counts them. ``threads(most)`` waits
    while they are more than `most`: what has done its work takes a moment to go."""

    def count(most: int = sys.maxsize) -> int:
        until = time.monotonic() + PATIENCE_S
        while (there := len(os.listdir("/proc/self/task"))) > most and time.monotonic() < until:
            os.sched_yield()
        return there

    return count
