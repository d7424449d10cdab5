"""Tests in Python again, with csrc/ under the address and undefined behaviour sanitizers."""

from __future__ import annotations

import os
from pathlib import Path

import cbuild
import pytest
from sanitized_core import run_sanitized

UNIT = Path(__file__).resolve().parents[1] / "unit"


@pytest.mark.skipif("PYKVM_CORE" in os.environ, reason="this is such a run")
def test_hostile_drivers_touch_nothing_of_the_hosts(tmp_path: Path) -> None:
    virtio = UNIT / "virtio"
    tests = [str(virtio / name) for name in ("test_hostile_driver.py", "test_queue.py")]
    run_sanitized(cbuild.build_core(tmp_path), *tests, PYKVM_CASES="150")
