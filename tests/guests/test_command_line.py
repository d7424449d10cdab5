"""``pykvm boot`` as a shell sees it: exit codes, streams, signals, a terminal."""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from pykvm import guest_programs

BOOT = (sys.executable, "-m", "pykvm", "boot")
FLAT = ("--mode", "real", "-m", "1M")
EXIT_7 = "ba f8 05 b0 07 ee"  # mov dx, 0x5f8; mov al, 7; out dx, al
SAY_AND_SPIN = "ba f8 03 b0 2e ee eb fe"  # '.' to 0x3f8, then jump to itself
# 1 to IER; poll LSR for DR; read; leave with 0 at Ctrl-D (4), else send back
ECHO = (
    "ba f9 03 b0 01 ee ba fd 03 ec a8 01 74 f8 ba f8 03 ec 3c 04 74 03 ee eb ed ba f8 05 b0 00 ee"
)
LIMIT_S = 60


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    return tmp_path / "guest"


def boot(
    guest: Path, code: str, *options: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    guest.write_bytes(bytes.fromhex(code))
    command = [*BOOT, str(guest), *FLAT, *options]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=LIMIT_S, check=False)


def test_guests_code_is_the_exit_code_and_nothing_is_said(guest: Path) -> None:
    done = boot(guest, EXIT_7)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")


def test_piped_input_comes_back_unchanged_on_standard_output(guest: Path) -> None:
    typed = bytes(set(range(256)) - {4}) * 3
    done = boot(guest, ECHO, stdin=typed + b"\x04")
    assert (done.returncode, done.stdout, done.stderr) == (0, typed, b"")


def test_timeout_leaves_with_124_and_reports_on_standard_error(guest: Path) -> None:
    done = boot(guest, SAY_AND_SPIN, "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (124, b".")
    assert b"pykvm: the guest ended: timeout" in done.stderr
    assert b"jmp" in done.stderr


def test_console_goes_to_a_file(guest: Path, tmp_path: Path) -> None:
    done = boot(guest, SAY_AND_SPIN, "--timeout", "0.2", "--serial", f"file:{tmp_path}/log")
    assert (done.stdout, (tmp_path / "log").read_bytes()) == (b"", b".")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--cpus", "100000"), ("--serial", "file:/nonexistent/log"), ("--load", "1M")],
)
def test_what_cannot_be_leaves_with_125_and_one_line(guest: Path, option: str, value: str) -> None:
    done = boot(guest, EXIT_7, option, value)
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.startswith(f"pykvm: {option}".encode())
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--disk", "pipe,ro"),
        ("--serial", "file:pipe"),
        ("--port", "x=file:pipe"),
        ("--trace", "pipe.json"),
        ("--plot", "pipe.svg"),
    ],
)
def test_a_fifo_whose_other_end_is_not_there_is_not_waited_for(
    guest: Path, tmp_path: Path, option: str, value: str
) -> None:
    value = value.replace("pipe", f"{tmp_path}/pipe")
    for name in ("pipe", "pipe.json", "pipe.svg"):
        os.mkfifo(tmp_path / name)
    done = boot(guest, EXIT_7, option, value)
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.startswith(f"pykvm: {option}".encode())


def started(guest: Path, code: str = SAY_AND_SPIN) -> subprocess.Popen[bytes]:
    """A running pykvm whose guest has said its first word."""
    guest.write_bytes(bytes.fromhex(code))
    process = subprocess.Popen(
        [*BOOT, str(guest), *FLAT],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == b"."
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_machine_in_order(guest: Path, number: signal.Signals) -> None:
    process = started(guest)
    process.send_signal(number)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (128 + number, b"")


def test_output_that_nobody_reads_ends_the_machine(guest: Path) -> None:
    process = started(guest, "ba f8 03 b0 2e ee eb fd")  # '.' for ever
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait(LIMIT_S) == 141


def test_terminal_belongs_to_the_guest_until_ctrl_a_x(guest: Path) -> None:
    guest.write_bytes(bytes.fromhex(ECHO))
    keyboard, terminal = os.openpty()
    before = termios.tcgetattr(terminal)
    process = subprocess.Popen(
        [*BOOT, str(guest), *FLAT],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    screen = b""
    while termios.tcgetattr(terminal)[3] & termios.ECHO:
        assert process.poll() is None
    os.write(keyboard, b"hi\x03\x1a!")  # Ctrl-C and Ctrl-Z too
    while not screen.endswith(b"hi\x03\x1a!"):
        assert select.select([keyboard], [], [], LIMIT_S)[0], screen
        screen += os.read(keyboard, 100)
    os.write(keyboard, b"\x01x")
    assert process.wait(LIMIT_S) == 0
    assert termios.tcgetattr(terminal) == before
    os.close(keyboard)
    os.close(terminal)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_stream_that_is_closed_is_an_empty_one(guest: Path, closed: str) -> None:
    guest.write_bytes(bytes.fromhex("ba f8 03 b0 2e ee " + EXIT_7))
    command = shlex.join([*BOOT, str(guest), *FLAT])
    done = subprocess.run(["/bin/sh", "-c", f"{command} {closed}"], timeout=LIMIT_S, check=False)
    assert done.returncode == 7


def test_a_kernel_may_come_through_a_pipe() -> None:
    image = Path(guest_programs.path("hello-multiboot")).read_bytes()
    done = subprocess.run(
        [*BOOT, "/dev/stdin"], input=image, capture_output=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"ok: EAX holds the multiboot magic" in done.stdout


def test_an_instruction_that_is_none_ends_a_real_mode_guest(guest: Path) -> None:
    done = boot(guest, "0f 0b", "--timeout", "30")  # ud2
    assert done.returncode == 255
    assert b"BIOS: invalid opcode at 0000:7c00" in done.stdout


def test_an_error_is_not_said_on_standard_output(guest: Path) -> None:
    command = f"{shlex.join([*BOOT, str(guest), '--cpus', '0'])} 2>&-"
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stdout) == (125, b"")


def test_output_that_cannot_be_written_is_no_success(guest: Path) -> None:
    guest.write_bytes(bytes.fromhex("ba f8 03 b0 2e ee " + EXIT_7))
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*BOOT, str(guest), *FLAT],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=LIMIT_S,
            check=False,
        )
    wanted = b"pykvm: writing to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (125, wanted)


@pytest.mark.parametrize("ending", ["timeout", "signal", "quit"])
def test_a_reader_that_does_not_read_cannot_keep_the_machine(guest: Path, ending: str) -> None:
    guest.write_bytes(bytes.fromhex("ba f8 03 b0 2e ee eb fd"))  # '.' for ever
    keyboard, terminal = os.openpty()
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(
        [*BOOT, str(guest), *FLAT, "--timeout", "0.2" if ending == "timeout" else "1000"],
        stdin=terminal,
        stdout=writer,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while select.select([], [writer], [], 0)[1]:
        assert process.poll() is None
    if ending == "signal":
        process.send_signal(signal.SIGTERM)
    if ending == "quit":
        os.write(keyboard, b"\x01x")
    assert process.wait(LIMIT_S) == {"timeout": 124, "signal": 143, "quit": 0}[ending]
    for fd in (keyboard, terminal, reader, writer):
        os.close(fd)
