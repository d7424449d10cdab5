"""The interactive console, tried through a pseudo-terminal as a user has one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from typing import Any

import pytest

# Says what each read gave, until Ctrl-A x or the end of input.
PROGRAM = """
import os, select
from pykvm.terminal import Terminal
terminal = Terminal()
print("ready", terminal.input_fds(), flush=True)
commands = ""
while terminal.input_fds() and "x" not in commands:
    select.select(terminal.input_fds(), [], [])
    data = terminal.read(terminal.input_fds()[0])
    commands = terminal.take_commands()
    if data or commands:
        print(data, repr(commands), flush=True)
{end}
print("closed", flush=True)
"""
ECHO_AND_LINES = termios.ECHO | termios.ICANON | termios.ISIG


class User:
    """Somebody at a terminal, with `PROGRAM` in its foreground."""

    def __init__(self, program: str, controlling: bool = True) -> None:
        self.keyboard, self.terminal = os.openpty()
        self.before = self.attributes()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=self.terminal,
            stdout=self.terminal,
            stderr=self.terminal,
            start_new_session=True,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if controlling else None,
        )
        self.screen = b""

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self.terminal)

    def type(self, keys: bytes) -> None:
        os.write(self.keyboard, keys)

    def sees(self, text: str) -> None:
        """Wait until `text` comes on the screen; what was before it is forgotten."""
        while text.encode() not in self.screen:
            ready, _, _ = select.select([self.keyboard], [], [], 30)
            assert ready, f"no {text!r} in {self.screen!r}"
            self.screen += os.read(self.keyboard, 4096)
        _, _, self.screen = self.screen.partition(text.encode())

    def leave(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keyboard)
        os.close(self.terminal)


@contextlib.contextmanager
def at_a_terminal(
    before: str = "", end: str = "terminal.close()", controlling: bool = True
) -> Iterator[User]:
    user = User(before + PROGRAM.format(end=end), controlling)
    try:
        yield user
    finally:
        user.leave()


@pytest.fixture
def user() -> Iterator[User]:
    with at_a_terminal() as user:
        user.sees("ready [0]")
        yield user


def test_terminal_is_raw_while_open_and_as_before_when_closed(user: User) -> None:
    assert user.attributes()[3] & ECHO_AND_LINES == 0
    assert user.attributes()[0] & termios.ICRNL == 0
    user.type(b"\x01x")
    user.sees("closed")
    assert user.process.wait(60) == 0
    assert user.attributes() == user.before


def test_terminal_is_as_before_also_after_a_crash() -> None:
    with at_a_terminal(end="raise RuntimeError") as user:
        user.sees("ready")
        user.type(b"\x01x")
        user.sees("RuntimeError")
        assert user.process.wait(60) == 1
        assert user.attributes() == user.before


def test_every_key_but_ctrl_a_goes_to_the_guest_at_once(user: User) -> None:
    for key in (b"a", b"\r", b"\n", b"\x03", b"\x04", b"\x1a", b"\x11", b"\x13", b"\x1b", b"\xff"):
        user.type(key)
        user.sees(f"{key!r} ''")


def test_ctrl_a_commands_are_not_for_the_guest(user: User) -> None:
    user.type(b"one\x01ptwo\x01?")
    user.sees(f"{b'onetwo'!r} 'p?'")


@pytest.mark.parametrize("keys", [b"\x01\x01", b"\x01a"])
def test_ctrl_a_twice_sends_one(user: User, keys: bytes) -> None:
    user.type(keys)
    user.sees(r"b'\x01' ''")


def test_command_may_come_in_two_reads(user: User) -> None:
    user.type(b"a\x01")
    user.sees("b'a' ''")
    user.type(b"p")
    user.sees("b'' 'p'")


def test_ctrl_a_h_asks_for_the_keys(user: User) -> None:
    user.type(b"\x01h")
    user.sees("b'' 'h'")
    user.type(b"b")
    user.sees("b'b' ''")


def test_hung_up_terminal_is_the_end_of_input_and_no_error() -> None:
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with at_a_terminal(before=program, end="terminal.close(); os._exit(7)") as user:
        user.sees("ready [0]\r\n")
        user.type(b"a")
        user.sees("b'a' ''\r\n")
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, user.keyboard)  # the only descriptor of this end goes away
        os.close(nothing)
        assert user.process.wait(60) == 7


def test_terminal_of_another_session_can_be_used_too() -> None:
    with at_a_terminal(controlling=False) as user:
        user.sees("ready [0]")
        user.type(b"\x01x")
        user.sees("closed")


IN_BACKGROUND = f"""
import os
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    exec({PROGRAM.format(end="")!r})
else:
    os.waitpid(child, 0)
"""


def test_terminal_is_left_alone_from_the_background() -> None:
    user = User(IN_BACKGROUND)
    try:
        user.sees("ready []")
        assert user.process.wait(60) == 0
        assert user.attributes() == user.before
    finally:
        user.leave()


# A shell's "&" and, when a line was typed, its "fg".
BROUGHT_BACK = """
import os, signal
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    from pykvm.terminal import Terminal
    terminal, woken = Terminal(), os.pipe()
    signal.signal(signal.SIGCONT, lambda *_: (terminal.resume(), os.write(woken[1], b".")))
    print("background", terminal.input_fds(), flush=True)
    os.read(woken[0], 1)
    print("foreground", terminal.input_fds(), flush=True)
    while b"!" not in (data := terminal.read(0)):
        print(data, flush=True)
    terminal.close()
    os._exit(0)
os.read(0, 100)
os.tcsetpgrp(0, child)
os.kill(child, signal.SIGCONT)
os.waitpid(child, 0)
"""


def test_terminal_is_taken_when_a_shell_brings_the_process_back() -> None:
    user = User(BROUGHT_BACK)
    try:
        user.sees("background []")
        user.type(b"fg\n")
        user.sees("foreground [0]")
        assert user.attributes()[3] & ECHO_AND_LINES == 0
        user.type(b"\x03")
        user.sees(r"b'\x03'")
        user.type(b"!")
        assert user.process.wait(60) == 0
        assert user.attributes() == user.before
    finally:
        user.leave()


# ── no terminal ──────────────────────────────────────────────────────────────────────────────────


def run_with_input(stdin: Any, data: bytes | None = None) -> str:
    command = [sys.executable, "-c", PROGRAM.format(end="terminal.close()")]
    if data is None:
        done = subprocess.run(command, stdin=stdin, capture_output=True, timeout=60, check=True)
    else:
        done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=True)
    return done.stdout.decode()


def test_piped_input_passes_unchanged() -> None:
    data = b"\x01x\x01a\r\n\x03\x00\xff"
    assert f"{data!r} ''" in run_with_input(None, data)


def test_no_input_is_the_end_of_input() -> None:
    assert "closed" in run_with_input(subprocess.DEVNULL)


def test_started_without_standard_input_there_is_none() -> None:
    command = [sys.executable, "-c", PROGRAM.format(end="")]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, timeout=60, check=True
    )
    assert done.stdout.startswith(b"ready []")
