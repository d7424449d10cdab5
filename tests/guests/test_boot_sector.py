"""A boot sector finds the BIOS it needs."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.boot.entry import CpuMode
from pykvm.outcome import Outcome, Reason

RunGuest = Callable[..., Outcome]


def test_a_boot_sector_prints_sleeps_and_reads_a_key(run_guest: RunGuest) -> None:
    outcome = run_guest("boot-sector", typed=b"k", mode=CpuMode.REAL)
    assert (outcome.reason, outcome.code) == (Reason.EXIT, 0)
    assert outcome.console.splitlines() == [
        b"hello from a boot sector",
        b"the memory map is there",
        b"the clock ticks",
        b"you typed k",
    ]
