"""Traces of Debian's kernel, booted in the lab: complete and explained; and the remedies work."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from traceformat import events_of, exits, marks

from pykvm.debug.causes import cause_of
from pykvm.debug.explain import explain
from pykvm.debug.phases import phases
from pykvm.debug.plot import plot
from pykvm.debug.traceread import Trace

IN_KERNEL_PORTS = 200  # a boot's accesses to KVM's own PIT and PICs: about 40
REMEDIES = "initcall_blacklist=cmos_init pci=off 8250.nr_uarts=1 quiet"


class Booted:
    """A traced boot."""

    def __init__(self, result: subprocess.CompletedProcess[bytes], path: Path) -> None:
        self.result, self.path = result, path
        self.events = events_of(path.read_text())

    @property
    def summary(self) -> dict[str, Any]:
        return dict(marks(self.events, "end")[0]["args"])


@pytest.fixture(scope="module")
def traced(
    boot: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Booted]:
    """``traced(words…)``: boot with --trace and --stats."""

    def run(*words: str) -> Booted:
        folder = tmp_path_factory.mktemp("trace")
        path = folder / "boot.json"
        options = ("--trace", str(path), "--stats", *words)
        return Booted(boot(debian_kernel("6.12-cloud"), *options, writable=[str(folder)]), path)

    return run


@pytest.fixture(scope="module")
def talkative(traced: Callable[..., Booted], tmp_path_factory: pytest.TempPathFactory) -> Booted:
    """Two CPUs, a disk, and a kernel that says what it does."""
    disk = tmp_path_factory.mktemp("disk") / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    append = "console=ttyS0 loglevel=7 panic=-1"
    return traced("-c", "2", "--disk", f"{disk},ro", "--append", append)


def test_a_boot_is_traced_without_loss(talkative: Booted) -> None:
    assert talkative.summary["lost"] == 0
    by_vcpu = Counter(event["tid"] for event in exits(talkative.events))
    assert [by_vcpu[1], by_vcpu[2]] == talkative.summary["exits"]


def test_the_counts_are_those_of_kvm(talkative: Booted) -> None:
    reasons = Counter(event["args"]["reason"] for event in exits(talkative.events))
    kvm = talkative.summary["kvm"]
    assert reasons["MMIO"] == kvm["mmio_exits"]
    assert 0 <= kvm["io_exits"] - reasons["IO"] < IN_KERNEL_PORTS
    assert sum(reasons.values()) <= kvm["exits"]


def test_a_disk_is_served_without_exits_and_that_is_seen(talkative: Booted) -> None:
    kicks, used = (marks(talkative.events, kind) for kind in ("queue-kick", "queue-used"))
    assert kicks
    assert sum(event["args"]["count"] for event in used) >= len(kicks) / 2
    assert marks(talkative.events, "interrupt")


def test_the_boot_is_explained(talkative: Booted) -> None:
    trace = Trace(str(talkative.path))
    names = [phase.name for phase in phases(trace)]
    for name in ("starting the other CPUs", "built-in drivers (initcalls)", "user space: init"):
        assert name in names
    text = explain(trace, None)
    assert "the serial console: two exits for every character" in text
    assert "port exits that KVM's own PIT and PICs answered" in text
    assert "built-in drivers" in plot(trace)


def test_the_table_names_the_devices(talkative: Booted) -> None:
    table = talkative.result.stderr.decode()
    for name in ("out 0x3f8 serial", "in 0x71 CMOS/RTC", "pci configuration", "halt_wait"):
        assert name in table
    assert re.search(r"io_exits [\d,]+ \([\d,]+\)", table)


def test_the_remedies_remove_what_they_say(
    traced: Callable[..., Booted], talkative: Booted
) -> None:
    quiet = traced("--append", f"console=ttyS0 panic=-1 {REMEDIES}")

    def by_remedy(booted: Booted) -> Counter[str]:
        causes = (cause_of(event["name"] + " ") for event in exits(booted.events))
        return Counter(cause.remedy for cause in causes if cause)

    before, after = by_remedy(talkative), by_remedy(quiet)
    for word in ("cmos_init", "nr_uarts", "'quiet'"):
        (remedy,) = (text for text in before if word in text)
        assert after[remedy] < before[remedy] / 10, (remedy, before, after)
    pci = [
        sum("pci" in event["name"] for event in exits(each.events)) for each in (talkative, quiet)
    ]
    assert pci[1] < pci[0] / 10  # all but an early look at what is in slot 0
