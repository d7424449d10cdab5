"""The supervisor, with a machine that is a socket and a pipe: who gets what, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pykvm.lab.client import Connection, LabEndedError
from pykvm.lab.supervisor import Supervisor
from pykvm.lab.wire import FRAME, Frame, Kind, pack

LIMIT_S = 30


class FakeMachine:
    """What a `Machine` is to the supervisor; the test is QEMU and the agent."""

    def __init__(self) -> None:
        self.port, self.agent = socket.socketpair()
        self.agent.settimeout(LIMIT_S)
        out, self._console = os.pipe()
        self.console = open(out, "rb", buffering=0)  # noqa: SIM115

    def prints(self, text: str) -> None:
        os.write(self._console, text.encode())

    def sends(self, kind: Kind, data: bytes = b"", command: int = 0) -> None:
        self.agent.sendall(pack(kind, 1, data, command))

    def gets(self, kind: Kind) -> Frame:
        """The next frame, which is to be of that kind; how the clock stands does not matter."""
        while True:
            command, got, arg, size = FRAME.unpack(self.agent.recv(FRAME.size, socket.MSG_WAITALL))
            data = self.agent.recv(size, socket.MSG_WAITALL) if size else b""
            if got != Kind.CLOCK:
                assert got == kind
                return Frame(command, got, arg, data)

    def close(self) -> None:
        self.port.close()
        os.close(self._console)


class Lab:
    """A supervisor in a thread, private unless `idle_s` is given; started at once if `begin`."""

    def __init__(self, path: Path, idle_s: float | None = None, *, begin: bool = True) -> None:
        self.machine = FakeMachine()
        self._path = str(path / "lab.sock")
        if idle_s is None:
            self.control, control = socket.socketpair()
        else:
            control = socket.socket(socket.AF_UNIX)
            control.bind(self._path)
            control.listen()
        machine: Any = self.machine
        supervisor = Supervisor(control, machine, idle_s)
        self.thread = threading.Thread(target=supervisor.run)
        if begin:
            self.thread.start()

    def client(self) -> Connection:
        """A client of a private lab."""
        ours, theirs = socket.socketpair()
        ours.settimeout(LIMIT_S)
        with theirs:
            socket.send_fds(self.control, [b"c"], [theirs.fileno()])
        return Connection(ours)

    def kept_client(self) -> Connection:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(LIMIT_S)
        sock.connect(self._path)
        return Connection(sock)

    def ends(self) -> None:
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.control.close()
    lab.ends()


def kinds(connection: Connection) -> list[int]:
    return [frame.kind for frame in connection.receive()]


def test_client_is_told_when_the_lab_is_ready(lab: Lab) -> None:
    early = lab.client()
    lab.machine.sends(Kind.READY)
    assert kinds(early) == [Kind.READY]
    assert kinds(lab.client()) == [Kind.READY]


def running(lab: Lab) -> tuple[Connection, int]:
    """A client with a command, and the command's number in the lab."""
    client = lab.client()
    assert kinds(client) == [Kind.READY]
    client.send(Kind.EXEC)
    return client, lab.machine.gets(Kind.EXEC).command


def test_each_client_gets_its_own_commands_output(lab: Lab) -> None:
    lab.machine.sends(Kind.READY)
    (one, number_of_one), (two, number_of_two) = running(lab), running(lab)
    lab.machine.sends(Kind.DATA, b"two", number_of_two)
    lab.machine.sends(Kind.DATA, b"one", number_of_one)
    assert [frame.data for frame in one.receive()] == [b"one"]
    assert [frame.data for frame in two.receive()] == [b"two"]


def test_number_is_free_again_after_exit(lab: Lab) -> None:
    lab.machine.sends(Kind.READY)
    client, number = running(lab)
    lab.machine.sends(Kind.EXIT, bytes(4), number)
    assert kinds(client) == [Kind.EXIT]
    assert running(lab)[1] == number


def test_command_whose_client_leaves_is_killed(lab: Lab) -> None:
    lab.machine.sends(Kind.READY)
    client, number = running(lab)
    client.socket.close()
    frame = lab.machine.gets(Kind.SIGNAL)
    assert (frame.command, frame.arg) == (number, signal.SIGKILL)
    assert running(lab)[1] != number  # until the killed one's EXIT


def test_clients_are_told_why_the_machine_ended(lab: Lab) -> None:
    lab.machine.sends(Kind.READY)
    client, _ = running(lab)
    lab.machine.prints("Kernel panic - not syncing\n")
    lab.machine.agent.close()
    with pytest.raises(LabEndedError, match=r"its machine ended\n.*\nKernel panic"):
        client.receive()


def test_private_lab_ends_with_its_user(lab: Lab) -> None:
    lab.machine.sends(Kind.READY)
    lab.control.close()
    lab.ends()


def test_kept_lab_ends_when_nobody_uses_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path, idle_s=0.01)
    lab.machine.sends(Kind.READY)
    lab.ends()


def test_kept_lab_stays_while_somebody_is_connected(tmp_path: Path) -> None:
    lab = Lab(tmp_path, idle_s=0, begin=False)
    client = lab.kept_client()
    lab.machine.sends(Kind.READY)
    lab.thread.start()
    assert kinds(client) == [Kind.READY]
    client.send(Kind.EXEC)
    lab.machine.gets(Kind.EXEC)
    client.socket.close()
    lab.ends()


def test_kept_lab_ends_when_told_to(tmp_path: Path) -> None:
    lab = Lab(tmp_path, idle_s=1000)
    lab.machine.sends(Kind.READY)
    other, client = lab.kept_client(), lab.kept_client()
    assert kinds(other) == kinds(client) == [Kind.READY]
    client.send(Kind.STOP)
    lab.ends()
    with pytest.raises(LabEndedError, match="it was stopped"):
        other.receive()


def test_lab_that_does_not_start_in_time_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pykvm.lab.supervisor.BOOT_TIMEOUT_S", 0.01)
    lab = Lab(tmp_path, begin=False)
    client = lab.client()  # before the time is over
    lab.thread.start()
    with pytest.raises(LabEndedError, match="did not start"):
        client.receive()
    lab.ends()
