"""A guest with an agent, whose machine is none: what it is asked, and what becomes of it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.agent import CommandError, CommandTimeoutError, GuestEndedError, GuestMachine, wire
from pykvm.agent.config import PORT
from pykvm.agent.link import Link
from pykvm.agent.wire import FromGuest, ToGuest
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError, KvmError
from pykvm.outcome import Outcome, Reason, Stats
from pykvm.virtio.config.console import PortConfig

CONFIG = MachineConfig(kernel=b"", ports=(PortConfig("mine", "stdio"), PortConfig(PORT, "fd:0")))
LIMIT_S = 60.0

Frame = tuple[int, bytes]
Answer = Callable[["Fake", int, bytes], None]


class Fake:
    """A `Machine` whose guest is `answer`: called with each frame while it runs."""

    def __init__(self, config: MachineConfig, answer: Answer) -> None:
        (port,) = (port for port in config.ports if port.name == PORT)
        self.config, self.answer = config, answer
        self.socket = socket.socket(fileno=os.dup(int(port.path)))
        self.console_log = bytearray(b"console\n")
        self.generation_id = SimpleNamespace(value=b"")
        self.frames: list[Frame] = []
        self.ended: Reason | None = None
        self.error: Exception | None = None
        self.runs = self.resets = 0
        self.report = "the report"
        self.vcpus: list[Any] = []
        self.stopped = threading.Event()
        self._rest = b""

    def run(self, tracer: object) -> Outcome:
        self.stopped.clear()
        self.runs += 1
        while not (self.ended or self.error or self.stopped.wait(0.001)):
            self._serve()
        if self.error:
            raise self.error
        report = self.report if self.ended else ""
        return Outcome(self.ended or Reason.QUIT, 0, b"", Stats(0, 0, 0), report)

    def _serve(self) -> None:
        try:
            self._rest += self.socket.recv(1 << 20)
        except BlockingIOError:
            return
        while self._rest:
            kind, size = wire.HEAD.unpack_from(self._rest)
            payload, self._rest = self._rest[5 : 5 + size], self._rest[5 + size :]
            self.frames.append((kind, payload))
            self.answer(self, kind, payload)

    def says(self, kind: FromGuest, payload: bytes = b"") -> None:
        self.socket.setblocking(True)
        self.socket.sendall(wire.HEAD.pack(kind, len(payload)) + payload)
        self.socket.setblocking(False)

    def stop(self) -> None:
        self.stopped.set()

    def fork(self, ports: tuple[PortConfig, ...]) -> Fake:
        return Fake(self.config._replace(ports=ports), self.answer)

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        self.socket.close()


def echo(fake: Fake, kind: int, payload: bytes) -> None:
    """Writes what it was asked for, and ends with the code that the last word is, if it is one."""
    if kind == ToGuest.INPUT and payload:
        fake.says(FromGuest.ERROR, payload)
        fake.says(FromGuest.TAKEN)
    if kind in (ToGuest.RUN, ToGuest.READ, ToGuest.WRITE) and payload:
        fake.says(FromGuest.OUTPUT, payload)
        last = payload.split(b"\0")[-2]
        fake.says(FromGuest.END, wire.CODE.pack(int(last) if last.isdigit() else 0))


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[GuestMachine, Fake]]]:
    made: list[GuestMachine] = []

    def make(answer: Answer = echo) -> tuple[GuestMachine, Fake]:
        fakes: list[Fake] = []

        def machine(link: Link) -> Any:
            config = CONFIG._replace(ports=(CONFIG.ports[0], PortConfig(PORT, link.port)))
            fakes.append(Fake(config, answer))
            return fakes[0]

        made.append(GuestMachine._make(machine))
        return made[0], fakes[0]

    yield make
    for guest in made:
        guest.close()
    assert not [t for t in threading.enumerate() if t.name == "guest"]


def test_text_is_for_a_shell_and_a_list_as_it_is(make: Any) -> None:
    guest, _ = make()
    assert guest.run("a b").stdout == "/\0\0/bin/sh\0-c\0a b\0"
    assert guest.run(["a b", "c"], cwd="/x", env={"N": "1"}).stdout == "/x\0N=1\0\0a b\0c\0"
    assert guest.run(["x"], text=False).stdout == b"/\0\0x\0"


def test_it_runs_from_the_first_command_on_until_it_rests(make: Any) -> None:
    guest, fake = make()
    assert fake.runs == 0
    guest.run("x")
    guest.run("y")
    assert fake.runs == 1
    guest.rest()
    assert fake.stopped.is_set()
    guest.run("z")
    assert fake.runs == 2


def test_check_raises_with_what_was_written(make: Any) -> None:
    guest, _ = make()
    assert guest.run(["3"]).code == 3
    with pytest.raises(CommandError, match=r"\['3'\] ended with code 3") as caught:
        guest.run(["3"], check=True)
    assert caught.value.completed.code == 3


def test_fork_leads_its_own_port_and_sets_the_clock_once(make: Any) -> None:
    guest, fake = make()
    with guest.fork() as fork:
        assert fork.console == "console\n" * 2  # what its origin said, and what it did
        fork.run("x")
        fork.run("y")
        forked = fork.machine
        assert [kind for kind, _ in forked.frames].count(ToGuest.CLOCK) == 1
        assert forked.frames[0][0] == ToGuest.CLOCK
        (ns,) = wire.TIME.unpack(forked.frames[0][1])
        assert abs(ns - time.time_ns()) < LIMIT_S * 1e9
        assert forked.config.ports[0] == CONFIG.ports[0]
        assert forked.config.ports[1] != fake.config.ports[1]
    guest.run("z")
    assert ToGuest.CLOCK not in [kind for kind, _ in fake.frames]


def test_reset_draws_an_id_and_sets_the_clock_again(make: Any) -> None:
    guest, _ = make()
    with guest.fork() as fork:
        assert fork.is_as_forked
        fork.run("x")
        fork.reset()
        assert fork.is_as_forked
        fork.run("y")
        forked = fork.machine
        assert not fork.is_as_forked  # who knows what is done with it
        assert (forked.resets, len(forked.generation_id.value)) == (1, 16)
        assert [kind for kind, _ in forked.frames].count(ToGuest.CLOCK) == 2


def test_fork_that_was_forked_is_not_as_forked(make: Any) -> None:
    guest, _ = make()
    with guest.fork() as fork, fork.fork():
        assert not fork.is_as_forked


def test_guest_that_ends_is_told_with_its_report(make: Any) -> None:
    def panic(fake: Fake, kind: int, payload: bytes) -> None:
        fake.ended = Reason.PANIC

    guest, _ = make(panic)
    with pytest.raises(GuestEndedError, match=r"(?s)^the guest ended: kernel panic.*the report"):
        guest.run("x", timeout=LIMIT_S)
    assert not guest.is_usable
    with pytest.raises(GuestEndedError, match="cannot be used any more: the guest ended: kernel"):
        guest.run("x")
    with pytest.raises(GuestEndedError, match="kernel panic"):
        guest.fork()


def test_headline_of_the_report_is_told_once(make: Any) -> None:
    def panic(fake: Fake, kind: int, payload: bytes) -> None:
        fake.ended, fake.report = Reason.PANIC, "the guest ended: kernel panic: why\n  where"

    guest, _ = make(panic)
    with pytest.raises(GuestEndedError) as caught:
        guest.run("x", timeout=LIMIT_S)
    assert str(caught.value) == "the guest ended: kernel panic: why\n  where"


def test_guest_that_ends_between_two_commands_is_told(make: Any) -> None:
    guest, fake = make()
    guest.run("x")
    fake.ended = Reason.POWEROFF
    for thread in threading.enumerate():
        if thread.name == "guest":
            thread.join()
    with pytest.raises(GuestEndedError, match="power-off"):
        guest.run("y", timeout=LIMIT_S)


def test_what_the_host_fails_with_is_raised(make: Any) -> None:
    def fail(fake: Fake, kind: int, payload: bytes) -> None:
        fake.error = KvmError("KVM_RUN", 5)

    guest, _ = make(fail)
    with pytest.raises(KvmError, match="KVM_RUN"):
        guest.run("x", timeout=LIMIT_S)


def test_command_out_of_time_leaves_it_usable(make: Any) -> None:
    def obey(fake: Fake, kind: int, payload: bytes) -> None:
        if kind == ToGuest.KILL:
            fake.says(FromGuest.END, wire.CODE.pack(137))
        if b"echo" in payload:
            echo(fake, kind, payload)

    guest, _ = make(obey)
    with pytest.raises(CommandTimeoutError) as caught:
        guest.run("sleep", timeout=0.01)
    assert "the command was 'sleep'" in caught.value.__notes__
    assert guest.run(["echo"]).stdout == "/\0\0echo\0"


def test_command_that_cannot_be_sent_changes_nothing(make: Any) -> None:
    guest, fake = make()
    for command in ("a\0b", [], [""]):
        with pytest.raises(ConfigError):
            guest.run(command)
    assert fake.runs == 0
    assert guest.is_usable


def test_broken_off_wait_leaves_it_lost(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, _ = make()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(guest._link, "ask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        guest.run("x")
    with pytest.raises(GuestEndedError, match="a command was broken off"):
        guest.run("x")


def test_files_fail_as_they_did_in_the_guest(make: Any) -> None:
    def refuse(fake: Fake, kind: int, payload: bytes) -> None:
        if kind in (ToGuest.READ, ToGuest.WRITE):
            fake.says(FromGuest.END, wire.CODE.pack(13))

    guest, _ = make(refuse)
    with pytest.raises(PermissionError, match="/etc/x"):
        guest.read_file("/etc/x")
    with pytest.raises(PermissionError, match="/etc/x"):
        guest.write_file("/etc/x", "text")
