"""The lab that the tests here share: one boot for all of them, workers of pytest-xdist included.

The kept lab is found through $XDG_RUNTIME_DIR, which is the test run's own here, so tests may use
the command line (``pykvm lab -- …``) and the fixture alike, and a developer's own kept lab is left
alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pykvm.boot.kernels import fetch
from pykvm.errors import ConfigError, HostError
from pykvm.lab import Lab, stop_kept
from pykvm.lab.client import LabEndedError
from pykvm.outcome import CODE_GUEST_CRASH, CODE_TIMEOUT

RunInLab = Callable[..., "subprocess.CompletedProcess[bytes]"]
Boot = Callable[..., "subprocess.CompletedProcess[bytes]"]

BOOT_S = 180  # a boot takes some ten seconds; on a busy host many times that
LIMIT_S = BOOT_S + 60  # for pykvm to start, to end and to report, too
TEST_S = 600  # an emulated machine on a busy host is slow; the first test also fetches kernels
IDLE_S = 60.0  # after the run's last process, however that ended: the lab ends by itself


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A running lab. Where there can be none the tests are skipped, but not in CI."""
    xdist = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(base.parent if xdist else base))
        lab = Lab(keep=True, idle_s=IDLE_S)
        try:
            lab.start()
        except HostError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"no lab: {error}")
        with lab.connect():  # it has a user as long as this process is there
            yield lab
        if not xdist:  # no worker knows whether it is the last one
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


@pytest.fixture(scope="session")
def in_lab(lab: Lab) -> RunInLab:
    """Run a command that boots a guest in the lab; it must leave with `code`, soon enough.

    Run it once more when its guest crashed, stood still or did not end in time, or the lab did:
    kernels rewrite their own instructions while they boot, and QEMU's TCG seldom lets another CPU
    run a half-written one. Guests have died of that, and the lab's own kernel. What pykvm does
    wrong comes again.
    """

    def run(
        command: Sequence[str], *, code: int = 0, input: bytes = b"", writable: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        def once() -> subprocess.CompletedProcess[bytes]:
            return lab.run(command, timeout=LIMIT_S, input=input, writable=writable)

        try:
            result = once()
            faulty = result.returncode in {CODE_GUEST_CRASH, CODE_TIMEOUT} - {code}
            failure = f"{result}" if faulty else ""
        except (subprocess.TimeoutExpired, LabEndedError) as error:
            failure = f"{error!r}, {getattr(error, 'stdout', b'')!r}"
        if failure:
            print(f"running it again: {failure}")
            lab.start()
            result = once()
        assert result.returncode == code, result
        return result

    return run


@pytest.fixture(scope="session")
def boot(in_lab: RunInLab) -> Boot:
    """``boot(KERNEL, WORDS…)``: ``pykvm boot`` in the lab, with the options of `in_lab`.

    A guest that does not end leaves a report: it has less time than the lab gives the command.
    """

    def run(
        kernel: str, *words: str, seconds: int = BOOT_S, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        command = (sys.executable, "-m", "pykvm", "boot", kernel, "--timeout", str(seconds))
        return in_lab([*command, *words], **options)

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time than `timeout` in pyproject.toml gives the others."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(TEST_S))
