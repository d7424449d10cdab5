"""The lab that the tests here share: one boot for all of them, workers of pytest-xdist included.

The kept lab is found through $XDG_RUNTIME_DIR, which is the test run's own here, so tests may use
the command line (``pykvm lab -- …``) and the fixture alike, and a developer's own kept lab is left
alone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pykvm.boot.kernels import fetch
from pykvm.errors import ConfigError, HostError
from pykvm.lab import Lab, stop_kept
from pykvm.lab.start import IDLE_S

TEST_S = 600  # an emulated machine on a busy host is slow; the first test also fetches kernels
XDIST_IDLE_S = 60.0  # no worker knows whether it is the last one: the lab ends by itself


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A running lab. Where there can be none the tests are skipped, but not in CI."""
    xdist = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(base.parent if xdist else base))
        lab = Lab(keep=True, idle_s=XDIST_IDLE_S if xdist else IDLE_S)
        try:
            lab.start()
        except HostError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"no lab: {error}")
        yield lab
        if not xdist:
            stop_kept()


@pytest.fixture(scope="session")
def debian_kernel() -> Callable[[str], str]:
    """The bzImage that ``pykvm kernel fetch PATTERN`` brings. Skips without, but not in CI."""

    def image(pattern: str) -> str:
        try:
            return str(fetch(pattern).image)
        except ConfigError as error:
            pytest.skip(f"this Debian has no such kernel: {error}")
        except HostError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"no kernel {pattern}: {error}")

    return image


Run = Callable[[], "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def without_crash() -> Callable[[Run], subprocess.CompletedProcess[bytes]]:
    """Run a boot again, twice at most, when its kernel crashed (255).

    Kernels rewrite their own instructions while they boot, and QEMU's TCG seldom lets another CPU
    run a half-written one: seen in guests and in the lab's own kernel. A crash of pykvm's making
    comes every time.
    """

    def run(boot: Run) -> subprocess.CompletedProcess[bytes]:
        for _ in range(2):
            if (result := boot()).returncode != 255:
                return result
            print(result.stderr.decode(errors="replace"))
        return boot()

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time than `timeout` in pyproject.toml gives the others."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(TEST_S))
