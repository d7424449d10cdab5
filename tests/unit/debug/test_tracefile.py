from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path

import pytest
from traceformat import events_of

from pykvm.debug.tracefile import COLUMNS, CONSOLE, TraceFile
from pykvm.errors import ConfigError


def write(path: Path, *lines: str) -> TraceFile:
    file = TraceFile(str(path), time.monotonic_ns())
    for line in lines:
        file.event(CONSOLE, "console", line)
    return file


def text_of(path: Path) -> str:
    """The file, with the name of the one track that is used."""
    name = json.dumps(
        {"ph": "M", "pid": 1, "tid": CONSOLE, "name": "thread_name", "args": {"name": "x"}}
    )
    return path.read_text().replace("[\n", f"[\n{name},\n", 1)


@pytest.mark.parametrize("name", ["trace", "trace.foo", "trace.json.gz", "json"])
def test_another_ending_is_refused_and_the_option_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"--trace: .*\.json.*\.csv"):
        write(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--trace: .*No such file or directory"):
        write(tmp_path / "none" / "trace.json")


@pytest.mark.parametrize("line", ["plain", 'a "quoted" \\ word', "\x1b[31mred\x07", "ä \ufffd"])
def test_any_line_of_a_console_is_valid_json(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.json"
    write(path, line).close()
    assert events_of(text_of(path))[-1]["name"] == line


def test_any_line_of_a_console_is_one_row_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    lines = ["plain", 'a "quoted", word', "two\nlines"]
    write(path, *lines).close()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == lines
    assert tuple(rows[0]) == COLUMNS


def test_a_trace_without_its_end_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write(path, "one", "two")
    for cut in (2, 3, 30):
        text = text_of(path)
        events = events_of(text[: len(text) - cut], cut=True)
        assert events[1 + 1]["name"] == "one"


def test_a_full_disk_ends_the_trace_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.symlink_to("/dev/full")
    file = write(path, "one")
    file.close()
    assert file.problem is not None
    assert "No space left on device" in file.problem


def test_what_a_failed_write_left_behind_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    file = write(path, "one")
    real = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) > 10:
            return real(fd, data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        file.event(CONSOLE, "console", "two")
    file.close()
    assert [e["name"] for e in events_of(text_of(path))][-1] == "one"
    assert file.problem is not None


def test_a_file_that_nothing_came_of_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write(path).close(keep=False)
    assert not path.exists()
