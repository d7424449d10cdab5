"""A hundred thousand hostile drivers, with csrc/ under sanitizers."""

from __future__ import annotations

from pathlib import Path

import cbuild
import pytest
from sanitized_core import run_sanitized

VIRTIO = Path(__file__).resolve().parents[1] / "unit" / "virtio"
BATCH = 2500  # hypothesis remembers what it tried: more in one process fill the memory
CASES = 100_000


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cbuild.build_core(tmp_path_factory.mktemp("core"))


@pytest.mark.parametrize("seed", range(CASES // BATCH))
def test_hostile_drivers_touch_nothing_of_the_hosts(core: Path, seed: int) -> None:
    tests = [str(VIRTIO / name) for name in ("test_hostile_driver.py", "test_queue.py")]
    run_sanitized(core, *tests, f"--hypothesis-seed={seed}", PYKVM_CASES=str(BATCH))
