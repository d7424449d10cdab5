"""Where the serial port can lead: each kind moves bytes, and ends without a trace."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm.console import (
    BytesConsole,
    Console,
    FileConsole,
    PtyConsole,
    UnixConsole,
    open_console,
    write_all,
)
from pykvm.errors import ConfigError


def read_when_ready(console: Console) -> bytes:
    """One read of whatever becomes readable first."""
    ready, _, _ = select.select(console.input_fds(), [], [], 30)
    assert ready, "no input came"
    return console.read(ready[0])


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("spec", ["", "bad", "file:", "unix:", "file", "none:x", "pty:", "STDIO"])
def test_unknown_console_names_the_option_and_the_choices(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"--serial: .* write stdio, none, pty, file:PATH"):
        open_console(spec)


def test_none_leads_nowhere() -> None:
    console = open_console("none")
    console.write(b"into the void")
    assert (console.input_fds(), console.take_commands()) == ([], "")
    console.close()


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", [b"", b"hello\n\x01\x03", b"x" * 100_000])
def test_bytes_console_gives_its_bytes_and_ends(source: bytes) -> None:
    before = open_fds()
    console = BytesConsole(source)
    given = b""
    while console.input_fds():
        given += read_when_ready(console)
    assert given == source
    assert open_fds() == before


# ── file ─────────────────────────────────────────────────────────────────────────────────────────


def test_file_console_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"what was there before, and is longer")
    console = open_console(f"file:{path}")
    console.write(b"one ")
    console.write(b"two")
    console.close()
    console.close()
    assert path.read_bytes() == b"one two"


def test_file_that_cannot_be_written_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--serial file:.*No such file.*name a writable file"):
        FileConsole(str(tmp_path / "missing" / "log"))


# ── pty ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pty_console(capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[PtyConsole, int]]:
    """The console and its other end, opened by the name it printed."""
    console = PtyConsole()
    name = capsys.readouterr().err.split()[-1]
    terminal = os.open(name, os.O_RDWR | os.O_NOCTTY)
    yield console, terminal
    os.close(terminal)
    console.close()
    console.close()


def test_pty_passes_every_byte_both_ways(pty_console: tuple[PtyConsole, int]) -> None:
    console, terminal = pty_console
    every_byte = bytes(range(256))
    console.write(every_byte)
    assert os.read(terminal, 1000) == every_byte
    os.write(terminal, every_byte)
    assert read_when_ready(console) == every_byte


def test_pty_that_nobody_reads_does_not_block(pty_console: tuple[PtyConsole, int]) -> None:
    console, _ = pty_console
    for _ in range(100):
        console.write(b"x" * 4096)


def test_pty_without_input_reads_as_nothing(pty_console: tuple[PtyConsole, int]) -> None:
    console, _ = pty_console
    assert console.read(console.input_fds()[0]) == b""


# ── unix ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def unix_console(tmp_path: Path) -> Iterator[UnixConsole]:
    console = UnixConsole(str(tmp_path / "socket"))
    yield console
    console.close()


def connect(console: UnixConsole) -> socket.socket:
    """A client, which the console has let in."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(console.path)
    client.settimeout(30)
    assert read_when_ready(console) == b""
    return client


def test_unix_console_passes_bytes_both_ways(unix_console: UnixConsole) -> None:
    with connect(unix_console) as client:
        unix_console.write(b"to the client")
        assert client.recv(100) == b"to the client"
        client.sendall(b"to the guest\x01x")
        assert read_when_ready(unix_console) == b"to the guest\x01x"
        assert unix_console.take_commands() == ""


def test_first_client_gets_what_was_said_before_it_came(unix_console: UnixConsole) -> None:
    unix_console.write(b"early ")
    unix_console.write(b"words")
    with connect(unix_console) as client:
        assert client.recv(100) == b"early words"


def test_words_before_the_first_client_are_kept_within_bounds(unix_console: UnixConsole) -> None:
    for i in range(300):
        unix_console.write(bytes([i % 256]) * 1024)
    received = b""
    with connect(unix_console) as client:
        while len(received) < UnixConsole.BACKLOG:
            received += client.recv(1 << 17)
    assert received[:1] == bytes([(300 - UnixConsole.BACKLOG // 1024) % 256])
    assert received[-1:] == bytes([299 % 256])


def test_after_a_client_hung_up_the_next_may_come(unix_console: UnixConsole) -> None:
    connect(unix_console).close()
    assert read_when_ready(unix_console) == b""
    with connect(unix_console) as client:
        unix_console.write(b"hello again")
        assert client.recv(100) == b"hello again"


def test_client_that_went_away_is_noticed_by_writing(unix_console: UnixConsole) -> None:
    connect(unix_console).close()
    unix_console.write(b"x")  # EPIPE
    with connect(unix_console) as client:
        unix_console.write(b"y")
        assert client.recv(100).endswith(b"y")


def test_client_that_does_not_read_is_hung_up_on(
    unix_console: UnixConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UnixConsole, "PATIENCE_S", 0.01)
    with connect(unix_console):
        for _ in range(100):  # far more than a socket buffers: the guest's timeout must not wait
            unix_console.write(b"x" * 65536)
    connect(unix_console).close()


def test_closing_removes_the_socket(tmp_path: Path) -> None:
    before = open_fds()
    console = UnixConsole(str(tmp_path / "socket"))
    client = connect(console)
    console.close()
    console.close()
    assert client.recv(1) == b""
    client.close()
    assert list(tmp_path.iterdir()) == []
    assert open_fds() == before


@pytest.mark.parametrize("name", ["taken", "missing/socket", "x" * 200])
def test_socket_that_cannot_be_made_says_why(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match=r"--serial unix:.*(in use|No such file|too long)"):
        UnixConsole(str(tmp_path / name))


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def test_write_all_waits_for_a_slow_reader_of_a_non_blocking_pipe() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = os.urandom(1 << 20)

    def write() -> None:
        write_all(writer, data)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    with open(reader, "rb") as file:
        assert file.read() == data
    thread.join()
