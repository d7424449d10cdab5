"""Tests in Python again, with csrc/ under the address and undefined behaviour sanitizers."""

from __future__ import annotations

import os
from pathlib import Path

import cbuild
import pytest
from sanitized_core import run_sanitized

TESTS = Path(__file__).resolve().parents[1]
FLOOD = "guests/test_network.py::test_frames_come_whole_however_they_are_cut"


@pytest.mark.skipif("PYKVM_CORE" in os.environ, reason="this is such a run")
def test_hostile_drivers_and_frames_touch_nothing_of_the_hosts(tmp_path: Path) -> None:
    virtio = TESTS / "unit/virtio"
    tests = [str(virtio / name) for name in ("test_hostile_driver.py", "test_queue.py")]
    run_sanitized(cbuild.build_core(tmp_path), *tests, str(TESTS / FLOOD), PYKVM_CASES="150")
