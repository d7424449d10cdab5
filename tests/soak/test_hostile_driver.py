"""A hundred thousand hostile drivers, with csrc/ under sanitizers."""

from __future__ import annotations

from pathlib import Path

import cbuild
import pytest
from sanitized_core import run_sanitized

TESTS = Path(__file__).resolve().parents[1] / "unit" / "virtio" / "test_hostile_driver.py"
BATCH = 1000  # hypothesis remembers what it tried: more in one process fill the memory
CASES = 100_000


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cbuild.build_core(tmp_path_factory.mktemp("core"))


@pytest.mark.parametrize("seed", range(CASES // BATCH))
def test_hostile_drivers_touch_nothing_of_the_hosts(core: Path, seed: int) -> None:
    run_sanitized(core, str(TESTS), f"--hypothesis-seed={seed}", PYKVM_CASES=str(BATCH))
