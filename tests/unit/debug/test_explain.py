from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from traces import CONSOLE, CONSOLE_LINES, MAP, boot, mark, write

from pykvm.debug import symbols
from pykvm.debug.causes import cause_of
from pykvm.debug.explain import explain
from pykvm.debug.phases import CATCHES_UP, FIRST, phases
from pykvm.debug.traceread import Trace
from pykvm.errors import ConfigError


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return Trace(write(tmp_path / "trace.json", boot()))


@pytest.fixture
def text(trace: Trace, tmp_path: Path) -> str:
    path = tmp_path / "System.map"
    path.write_text(MAP)
    return explain(trace, symbols.load(str(path)))


def test_phases_begin_where_the_console_says_so(trace: Trace) -> None:
    found = [(p.name, round((p.start - trace.start) / 1e6, 2)) for p in phases(trace)]
    assert found == [
        (FIRST, 0.0),
        # Kept until the console worked: stamps count from 3.0, when it printed what it had kept
        # by 2.0; the machine ran from 1.0 on.
        ("memory map, ACPI tables (setup_arch)", 0.0),
        ("allocators, scheduler, interrupts", 0.5),
        (CATCHES_UP, 2.0),
        ("clocks, interrupt controllers (late_time_init)", 2.5),
        ("CPU features, mitigations", 2.6),
        ("built-in drivers (initcalls)", 3.0),
        ("user space: init", 8.0),
        ("user space: after pykvm's init", 8.5),
    ]
    assert phases(trace)[-1].end == trace.end


def test_lines_that_come_at_once_begin_their_phases_in_the_order_they_were_said(
    tmp_path: Path,
) -> None:
    events = boot(ended=False)[:2]
    for at, line in (
        (5e6, "smp: Bringing up secondary CPUs ..."),
        (5e6, "smp: Brought up 1 node, 1 CPU"),
        (7e6, "Run /init as init process"),
        (8e6, "hello"),
    ):
        events.append(mark(at, CONSOLE, "console", line))
    names = [phase.name for phase in phases(Trace(write(tmp_path / "trace.json", events)))]
    assert names == [FIRST, "built-in drivers (initcalls)", "user space: init"]


def test_a_console_that_says_nothing_known_is_one_phase(tmp_path: Path) -> None:
    events = [event for event in boot() if event["cat"] != "console"]
    (phase,) = phases(Trace(write(tmp_path / "trace.json", events)))
    assert phase.duration == pytest.approx(9.1e6, rel=0.01)


def test_a_quiet_kernel_could_tell_more_phases(tmp_path: Path) -> None:
    events = boot()
    events[0]["args"]["cmdline"] = "console=ttyS0 quiet panic=-1 loglevel=4"
    text = explain(Trace(write(tmp_path / "trace.json", events)), None)
    assert "--append 'console=ttyS0 panic=-1 loglevel=7'" in text


@pytest.mark.parametrize("loudness", ["", "quiet loglevel=7", "quiet debug"])
def test_a_kernel_that_speaks_is_not_asked_to(tmp_path: Path, loudness: str) -> None:
    events = boot()
    events[0]["args"]["cmdline"] = f"console=ttyS0 {loudness}"
    assert "tells its phases" not in explain(Trace(write(tmp_path / "t.json", events)), None)


def test_the_most_expensive_exits_are_named_counted_and_placed(text: str) -> None:
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("the most expensive exits"))
    first, second, third = (line.split() for line in lines[at + 1 : at + 4])
    assert {first[0], second[0]} == {"out", "in"}
    assert first[3] == second[3] == "1,000"
    assert "serial_putchar (0xffffffff81001010)" in text
    assert "wait_for_xmitr (0xffffffff81001110)" in text
    assert third[:3] == ["out", "0x70", "CMOS/RTC"]


def test_causes_come_with_their_remedy(text: str) -> None:
    assert "the serial console" in text
    assert "'quiet'" in text
    assert "(2,000 exits)" in text
    assert "tsc_early_khz=" in text  # 3000 port exits that pykvm never saw


def test_a_remedy_that_was_taken_is_not_told_again(tmp_path: Path) -> None:
    events = boot()
    events[0]["args"]["cmdline"] = "console=ttyS0 quiet"
    text = explain(Trace(write(tmp_path / "trace.json", events)), None)
    assert "the serial console" not in text


def test_samples_and_silences_are_told(text: str) -> None:
    assert "100.0%  idle" in text
    assert "after '[    2.500000] smp: Brought up 1 node, 1" in text
    assert "1.5 s  halted" in text


def test_what_the_console_had_kept_is_no_silence(text: str) -> None:
    assert "before '[    2.000000] printk: legacy console" not in text


def test_another_guest_than_linux_gets_no_options_of_linux(tmp_path: Path) -> None:
    events = [event for event in boot() if event["cat"] not in ("console", "machine")]
    assert "what would remove them" not in explain(
        Trace(write(tmp_path / "trace.json", events)), None
    )


def test_a_trace_whose_end_is_missing_is_explained_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write(path, boot(ended=False))
    text = path.read_text()
    path.write_text(text[: len(text) - 60])
    assert "the trace has no end" in explain(Trace(str(path)), None)


def test_a_trace_that_was_laid_out_anew_is_the_same(tmp_path: Path, trace: Trace) -> None:
    for name, document in (
        ("indented.json", json.dumps(boot(), indent=4)),
        ("object.json", json.dumps({"traceEvents": boot()})),
        ("one-line.json", json.dumps(boot())),
    ):
        path = tmp_path / name
        path.write_text(document)
        assert list(Trace(str(path)).exits()) == list(trace.exits())


@pytest.mark.parametrize("content", ["", "[]", "hello", "[\n1\n]", '{"a": 1}', "[\n{}\n]"])
def test_what_is_no_trace_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="TRACE: "):
        Trace(str(path))


def test_a_file_without_symbols_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_text("ffffffffffffffff B The real System.map is elsewhere\n")
    with pytest.raises(ConfigError, match=r"--symbols: .* has no symbols"):
        symbols.load(str(path))


def test_symbols_beside_the_kernel_are_found(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz-6.12").write_bytes(b"no ELF")
    (tmp_path / "System.map-6.12").write_text(MAP)
    found = symbols.beside(str(tmp_path / "vmlinuz-6.12"))
    assert found is not None
    assert found.find(0xFFFFFFFF81002004) == "rtc_read+0x4"
    assert found.find(0x1000) is None


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("out 0x3f8 serial", "quiet"),
        ("in 0x3fd serial", "quiet"),
        ("in 0x2f9", "8250.nr_uarts=1"),
        ("in 0x71 CMOS/RTC", "initcall_blacklist=cmos_init"),
        ("out 0xcf8 reset control", "pci=off"),
        ("in 0xcfc pci configuration", "--transport mmio"),
        ("write 0xc0800014 pci window", "--transport mmio"),
        ("out 0x80 POST", "io_delay=none"),
    ],
)
def test_known_causes_are_recognized(name: str, remedy: str) -> None:
    cause = cause_of(name + " ")
    assert cause is not None
    assert remedy in cause.remedy


def test_an_unknown_exit_has_no_cause() -> None:
    assert cause_of("out 0x510 fw_cfg ") is None


def test_the_command_explains_and_draws(tmp_path: Path) -> None:
    path, picture = write(tmp_path / "trace.json", boot()), tmp_path / "out.svg"
    command = [sys.executable, "-m", "pykvm", "explain", path, "--plot", str(picture)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "2,002 exits" in result.stdout
    assert picture.read_text().startswith("<svg")


def test_every_console_line_of_the_example_has_its_time(trace: Trace) -> None:
    assert [(m.time / 1e6, m.name) for m in trace.console] == list(CONSOLE_LINES)
