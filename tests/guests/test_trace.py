"""Traces and statistics of small guests: complete, exact, and readable however the run ends."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from traceformat import events_of, exits, marks

from pykvm import guest_programs
from pykvm.boot.entry import CpuMode
from pykvm.config import MachineConfig
from pykvm.debug import trace as tracing
from pykvm.debug.flight import FlightRecorder
from pykvm.debug.kvmstats import StatsFile
from pykvm.debug.trace import Tracer
from pykvm.errors import BootError
from pykvm.machine import Machine
from pykvm.outcome import Outcome, Reason
from pykvm.virtio.config.disk import DiskConfig

MEMORY = 16 << 20
PYKVM = [sys.executable, "-m", "pykvm", "boot"]


def trace_guest(
    path: Path | None, name: str, *, stats: bool = False, timeout: float = 20, **options: Any
) -> tuple[Outcome, Tracer]:
    """Run a guest to its end with a trace, which is complete then."""
    options = {"memory": MEMORY, **options}
    config = MachineConfig(kernel=guest_programs.path(name), **options)
    with Tracer(path, stats=stats) as tracer, Machine(config) as vm:
        outcome = vm.run(timeout=timeout, tracer=tracer)
        assert tracer.problem is None
    return outcome, tracer


def test_every_exit_is_in_the_trace_once(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    outcome, _ = trace_guest(path, "exits")
    found = exits(events_of(path.read_text()))
    assert len(found) == outcome.stats.exits == 1001
    assert Counter(event["name"] for event in found) == {
        "out 0x80 POST": 1000,
        "out 0x5f8 exit code": 1,
    }
    assert {event["args"]["by"] for event in found} == {"Python"}


def test_an_exit_tells_address_value_and_where_the_guest_was(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace_guest(path, "hello-long", mode=CpuMode.LONG, load=0x100000)
    text = [e["args"] for e in exits(events_of(path.read_text())) if "serial" in e["name"]]
    sent = bytes(int(a["value"], 16) for a in text if a["address"] == "0x3f8" and a["write"])
    assert b"hello" in sent.lower()
    assert {a["by"] for a in text} == {"C"}
    assert all(0x100000 <= int(a["rip"], 16) < 0x101000 for a in text)


def test_console_lines_are_marks(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    outcome, _ = trace_guest(path, "hello-elf64")
    events = events_of(path.read_text())
    lines = [event["name"] for event in marks(events, "console")]
    assert lines == [line for line in outcome.console.decode().splitlines() if line]


def test_csv_and_json_tell_the_same(tmp_path: Path) -> None:
    paths = tmp_path / "trace.json", tmp_path / "trace.csv"
    for path in paths:
        trace_guest(path, "exits")
    found = exits(events_of(paths[0].read_text()))
    with paths[1].open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "exit"]
    fields = ("reason", "address", "value", "by")
    assert [[row[field] for field in fields] for row in rows] == [
        [event["args"][field] for field in fields] for event in found
    ]
    assert [row["name"] for row in rows] == [event["name"] for event in found]


def test_the_counts_are_those_of_the_vcpu_and_of_kvm(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    config = MachineConfig(kernel=guest_programs.path("exits"), memory=MEMORY)
    with Tracer(path, stats=True, hz=0) as tracer, Machine(config) as vm:
        kvm = StatsFile.of(vm.vcpus[0].fd)
        vm.run(timeout=20, tracer=tracer)
        stats = tracer.stats()
        counted = kvm.read()
        kvm.close()
        exits_of_vcpu = vm.exits
    events = events_of(path.read_text())
    recorded = len(exits(events))
    assert recorded == stats.exits == exits_of_vcpu
    assert marks(events, "end")[0]["args"]["exits"] == [recorded]
    # `exits` counts those that KVM dealt with itself, too, and our kicks; io_exits, on hosts whose
    # KVM counts them, those of in-kernel devices: this guest uses none.
    assert counted["exits"] >= recorded
    if counted["io_exits"]:
        assert counted["io_exits"] == recorded
    assert stats.kvm["exits"] == counted["exits"]


def test_a_guest_that_never_exits_is_sampled(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    outcome, _ = trace_guest(path, "spin", mode=CpuMode.LONG, load=0x100000, timeout=1)
    assert outcome.reason is Reason.TIMEOUT
    samples = marks(events_of(path.read_text()), "sample")
    assert len(samples) > 5
    assert {int(event["args"]["rip"], 16) >> 12 for event in samples} == {0x100}


def test_no_samples_when_none_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    config = MachineConfig(kernel=guest_programs.path("exits"), memory=MEMORY)
    with Tracer(path, hz=0) as tracer, Machine(config) as vm:
        vm.run(timeout=20, tracer=tracer)
    assert marks(events_of(path.read_text()), "sample") == []


def test_each_vcpu_has_a_track(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace_guest(path, "smp", cpus=2)
    events = events_of(path.read_text())
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"vCPU 0", "vCPU 1", "console"} <= set(names.values())
    assert {names[event["tid"]] for event in exits(events)} <= {"vCPU 0", "vCPU 1"}


def test_what_is_lost_is_counted_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "RING", 16)
    monkeypatch.setattr(Tracer, "tick", lambda self, now: now + 60)  # nobody takes them
    path = tmp_path / "trace.json"
    config = MachineConfig(kernel=guest_programs.path("exits"), memory=MEMORY)
    with Tracer(path, stats=True, hz=0) as tracer, Machine(config) as vm:
        outcome = vm.run(timeout=20, tracer=tracer)
        stats = tracer.stats()
    events = events_of(path.read_text())
    (end,) = marks(events, "end")
    assert tracer.lost > 900
    assert end["args"]["lost"] == tracer.lost
    recorded = sum(len(marks(events, kind)) for kind in ("exit", "kick"))
    kicks = sum(row.count for row in stats.rows if not row.is_exit)
    assert recorded + tracer.lost == outcome.stats.exits + kicks
    assert tracer.problem == (
        f"{tracer.lost} records were lost: they came faster than they could be written"
    )
    assert stats.exits == outcome.stats.exits  # counting loses nothing


def test_a_disk_by_pci_is_kicked_and_answers_without_exits(tmp_path: Path) -> None:
    path, disk = tmp_path / "trace.json", tmp_path / "disk"
    disk.write_bytes(b"hello from the disk".ljust(16 * 512, b"\0"))
    options = {"cmdline": "pci=1 count=100", "transport": "pci"}
    outcome, _ = trace_guest(path, "virtqueue", disks=(DiskConfig(str(disk)),), **options)
    assert outcome.code == 0
    events = events_of(path.read_text())
    kicks, used = marks(events, "queue-kick"), marks(events, "queue-used")
    assert len(kicks) > 50
    assert sum(event["args"]["count"] for event in used) >= 100
    assert any("disk" in event["name"] for event in marks(events, "interrupt"))
    assert len({event["tid"] for event in kicks + used}) == 1  # the device's own track


def test_a_run_that_goes_on_goes_on_in_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    image = guest_programs.path("spin")
    config = MachineConfig(kernel=image, memory=MEMORY, mode=CpuMode.LONG, load=0x100000)
    with Tracer(path) as tracer, Machine(config) as vm:
        for _ in range(2):
            vm.run(timeout=0.2, tracer=tracer)
        vm.run(timeout=0.1)  # not traced
    events = events_of(path.read_text())
    assert len(marks(events, "end")) == 2
    assert len(marks(events, "machine")) == 1


def test_a_crash_leaves_a_whole_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    outcome, _ = trace_guest(path, "triplefault", mode=CpuMode.LONG, load=0x100000)
    assert outcome.reason is Reason.TRIPLE_FAULT
    assert exits(events_of(path.read_text()))[-1]["name"] == "SHUTDOWN"


def test_an_exception_in_the_midst_of_a_run_leaves_a_whole_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    config = MachineConfig(kernel=guest_programs.path("exits"), memory=MEMORY)
    with Tracer(path) as tracer, Machine(config) as vm:

        @vm.pio(0x80)
        def broken(offset: int, size: int, value: int | None) -> None:
            raise RuntimeError("a device of the user's")

        with pytest.raises(RuntimeError):
            vm.run(timeout=20, tracer=tracer)
    assert marks(events_of(path.read_text()), "end")


def test_a_machine_that_could_not_be_made_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    config = MachineConfig(kernel=b"no kernel", memory=MEMORY)
    with pytest.raises(BootError), Tracer(path), Machine(config):
        pass
    assert not path.exists()


# ── the command line ─────────────────────────────────────────────────────────────────────────────


def start_spinning(path: Path) -> subprocess.Popen[bytes]:
    """``pykvm boot`` of a guest that never ends; the trace has begun."""
    words = [str(guest_programs.path("spin")), "--mode", "long", "--load", "0x100000"]
    process = subprocess.Popen(
        [*PYKVM, *words, "--trace", str(path)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (path.exists() and "sample" in path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_whole_trace(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "trace.json"
    process = start_spinning(path)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert marks(events_of(path.read_text()), "end")
    subprocess.run(
        [sys.executable, "-m", "json.tool", str(path), os.devnull], check=True, timeout=60
    )


def test_sigkill_leaves_what_a_reader_of_traces_accepts(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    process = start_spinning(path)
    process.kill()
    process.communicate(timeout=60)
    events = events_of(path.read_text(), cut=True)
    assert marks(events, "sample")
    with pytest.raises(json.JSONDecodeError):
        json.loads(path.read_text())


def test_the_table_goes_to_standard_error() -> None:
    image = str(guest_programs.path("exits"))
    result = subprocess.run([*PYKVM, image, "--stats"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert "1,001 exits" in result.stderr
    assert "out 0x80 POST" in result.stderr
    assert result.stdout == ""


def test_a_picture_needs_no_trace_of_the_users(tmp_path: Path) -> None:
    picture = tmp_path / "out.svg"
    command = [*PYKVM, str(guest_programs.path("exits")), "--plot", str(picture)]
    subprocess.run(command, check=True, timeout=60, cwd=tmp_path)
    assert "1,001 exits" in picture.read_text()
    assert list(tmp_path.iterdir()) == [picture]


def test_live_statistics_come_line_by_line_where_no_terminal_is() -> None:
    words = [str(guest_programs.path("spin")), "--mode", "long", "--load", "0x100000"]
    words += ["--timeout", "2", "--stats=live"]
    result = subprocess.run([*PYKVM, *words], capture_output=True, text=True, timeout=60)
    assert result.returncode == 124
    assert "exits/s" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trace", "trace.foo"], "--trace: 'trace.foo' is neither .json"),
        (["--trace", "/nonexistent/trace.json"], "--trace: /nonexistent/trace.json: No such file"),
        (["--stats=dead"], "--stats: 'dead' is unknown"),
        (["--trace", "t.json", "--trace-hz", "many"], "--trace-hz: 'many' is not a number"),
        (["--trace", "t.json", "--trace-hz", "1000000"], "--trace-hz: 1000000 is not between"),
    ],
)
def test_a_bad_option_is_named(tmp_path: Path, words: list[str], message: str) -> None:
    image = str(guest_programs.path("exits"))
    command = [*PYKVM, image, *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert result.returncode == 125
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_flight_recorder_has_the_last_exits_in_their_order() -> None:
    recorder = FlightRecorder()
    kernel = guest_programs.path("hello-long")
    with Machine(MachineConfig(kernel=kernel, memory=MEMORY, mode=CpuMode.LONG)) as vm:
        vm.run(timeout=20, tracer=recorder)
        lines = recorder.lines()
        assert "out 0x5f8 exit code" in lines[-2]  # then the vCPU is kicked
        assert "kick" in lines[-1]
        assert "     0.000 ms" in lines[-1]
        said = [re.search(r"vCPU 0  out 0x3f8 serial = (0x\w+)  at 0x1", line) for line in lines]
        letters = bytes(int(match[1], 16) for match in said if match)
        assert b"hello from long mode\n".endswith(letters)
        assert recorder.lines() == []  # they were taken
    recorder.close()
    recorder.close()
