"""The agent of pykvm's init, as a program of the host's, under the sanitizers."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cbuild import HERE, SANITIZERS
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.agent import CommandTimeoutError, OutputError, wire
from pykvm.agent.link import Completed, Link
from pykvm.agent.wire import FromGuest, ToGuest

GUESTS = HERE.parents[1] / "guests"
LIMIT_S = 20.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("agent") / "agent"
    init = GUESTS / "init"
    sources = [HERE / "agent.c", init / "agent.c", init / "linux.c"]
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", *SANITIZERS["memory"]]
    subprocess.run(["gcc", *flags, *map(str, sources), "-o", str(target)], check=True)
    return target


class Agent:
    """A running one."""

    def __init__(self, program: Path, port: socket.socket) -> None:
        os.set_blocking(port.fileno(), True)
        self.process = subprocess.Popen([program, str(port.fileno())], pass_fds=[port.fileno()])
        port.close()

    def end(self) -> None:
        """It must have lived until now."""
        assert self.process.poll() is None
        self.process.kill()
        self.process.wait(LIMIT_S)


@pytest.fixture
def link(program: Path) -> Iterator[Link]:
    link = Link()
    agent = Agent(program, link._guest)
    yield link
    agent.end()
    link.close()


def run(link: Link, *words: str, input: bytes = b"", **options: float) -> Completed[bytes]:
    return link.ask(wire.command(words, "/", {}), input, **{"timeout": LIMIT_S, **options})


def sh(link: Link, script: str, input: bytes = b"", **options: float) -> Completed[bytes]:
    return run(link, "sh", "-c", script, input=input, **options)


def await_end(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([pidfd], [], [], LIMIT_S)[0]
    os.close(pidfd)


def test_code_and_both_streams_come_back(link: Link) -> None:
    link.greet(LIMIT_S)
    assert sh(link, "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert sh(link, "kill -9 $$") == (128 + 9, b"", b"")
    assert run(link, "no such program")[0] == 127


def test_folder_is_the_commands(link: Link) -> None:
    done = link.ask(wire.command(["pwd"], "/usr", {}), b"", LIMIT_S)
    assert done.stdout == b"/usr\n"
    done = link.ask(wire.command(["pwd"], "/no/folder", {}), b"", LIMIT_S)
    assert (done.code, done.stderr) == (126, b"pykvm: no such folder: /no/folder\n")


@pytest.mark.parametrize("size", [0, 1, wire.PIECE, wire.PIECE + 1, 3_000_000])
def test_input_comes_back_byte_for_byte(link: Link, size: int) -> None:
    data = bytes(os.urandom(size))
    assert run(link, "cat", input=data) == (0, data, b"")


def test_input_that_is_not_read_holds_nothing_up(link: Link) -> None:
    data = bytes(1_000_000)
    assert run(link, "true", input=data).code == 0
    assert sh(link, "exec <&-; echo closed; sleep 0.1; exit 3", data) == (3, b"closed\n", b"")
    assert run(link, "head", "-c", "5", input=data) == (0, bytes(5), b"")
    assert run(link, "cat", input=b"next") == (0, b"next", b"")


def test_output_of_many_pieces_is_whole(link: Link) -> None:
    done = sh(link, "head -c 5000000 /dev/zero & head -c 5000000 /dev/zero >&2; wait")
    assert (len(done.stdout), len(done.stderr)) == (5_000_000, 5_000_000)


def test_command_out_of_time_is_killed_with_its_group(link: Link, tmp_path: Path) -> None:
    with pytest.raises(CommandTimeoutError, match=r"within 0\.3 s and was killed") as caught:
        sh(link, f"echo begun; sleep 1000 & echo $! >{tmp_path}/pid; wait", timeout=0.3)
    assert caught.value.completed == (128 + 9, b"begun\n", b"")
    await_end(int((tmp_path / "pid").read_text()))
    with pytest.raises(CommandTimeoutError):  # its input is stuck
        run(link, "sleep", "1000", input=bytes(1_000_000), timeout=0.3)
    assert run(link, "echo", "on").stdout == b"on\n"


def test_command_that_writes_too_much_is_killed(link: Link) -> None:
    with pytest.raises(OutputError) as caught:
        run(link, "yes", output_max=100_000)
    assert 0 < len(caught.value.completed.stdout) <= 100_000
    assert run(link, "echo", "on").stdout == b"on\n"


def test_what_stays_in_the_background_does_not_hold_a_command_up(link: Link) -> None:
    done = sh(link, "echo said; sleep 1000 & echo $!")
    said, pid = done.stdout.split()
    assert said == b"said"
    flooding = sh(link, "yes & echo $! >&2")
    assert flooding.code == 0
    os.kill(int(pid), signal.SIGKILL)
    assert run(link, "echo", "on").stdout == b"on\n"


def test_orphans_do_not_end_a_command(link: Link) -> None:
    done = sh(link, "(sleep 0.05 & ) ; sleep 0.3; echo mine; exit 5")
    assert done == (5, b"mine\n", b"")


def test_files_are_written_and_read(link: Link, tmp_path: Path) -> None:
    path, data = tmp_path / "file", os.urandom(100_000)
    path.write_text("before")
    assert link.ask(wire.write(str(path), 0o751), data, LIMIT_S).code == 0
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o7777 == 0o751
    assert link.ask(wire.read(str(path)), b"", LIMIT_S).stdout == data


def test_files_that_cannot_be_have_their_errno(link: Link, tmp_path: Path) -> None:
    assert link.ask(wire.read("/no/file"), b"", LIMIT_S).code == 2  # ENOENT
    assert link.ask(wire.read(str(tmp_path)), b"", LIMIT_S).code == 21  # EISDIR
    assert link.ask(wire.write("/dev/full", 0o666), b"more", LIMIT_S).code == 28  # ENOSPC
    assert link.ask(wire.write("/proc/self/no", 0o644), bytes(99_999), LIMIT_S).code == 2


# ── frames that no friend sends ──────────────────────────────────────────────────────────────────

SHORT = st.binary(max_size=40)
STRAY = st.one_of(
    st.builds(wire.frame, st.sampled_from([ToGuest.INPUT, ToGuest.KILL]), SHORT),
    st.builds(wire.frame, st.just(ToGuest.CLOCK), SHORT.filter(lambda b: len(b) != 8)),
    st.builds(
        lambda kind, data: wire.HEAD.pack(kind, len(data)) + data, st.integers(7, 255), SHORT
    ),
    st.just(wire.frame(ToGuest.INPUT, bytes(100_000))),
)
ASKED = st.one_of(
    st.sampled_from([wire.command(["true"], "/", {}), wire.greeting()]),
    st.builds(lambda data: wire.frame(ToGuest.RUN, b"/\1" + data), SHORT),
    st.builds(lambda data: wire.frame(ToGuest.READ, b"/\1/" + data), SHORT),
    st.builds(wire.frame, st.just(ToGuest.WRITE), st.binary(max_size=3)),
    st.just(wire.frame(ToGuest.RUN, bytes(5000))),  # more than it has room for
)
CASES = 20


def in_pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


@settings(max_examples=CASES)
@given(
    st.lists(
        st.tuples(st.lists(STRAY, max_size=3), ASKED, st.lists(STRAY, max_size=3)), max_size=6
    ),
    st.lists(st.integers(1, 60), max_size=20),
)
def test_every_request_has_one_end_whatever_is_sent_beside_it(
    program: Path, rounds: list[tuple[list[bytes], bytes, list[bytes]]], sizes: list[int]
) -> None:
    ours, port = socket.socketpair()
    agent = Agent(program, port)
    ours.settimeout(LIMIT_S)
    decoder = wire.Decoder()
    for before, request, after in [*rounds, ([], wire.greeting(), [])]:
        ends = 0
        for piece in in_pieces(b"".join([*before, request, *after]), sizes):
            ours.sendall(piece)
        while not ends:
            frames = list(decoder.feed(ours.recv(65536)))
            ends += sum(kind is FromGuest.END for kind, _ in frames)
        assert ends == 1
    agent.end()
    ours.close()
