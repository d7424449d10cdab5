"""Commands in the lab behave as commands here do: streams, codes, signals, files, leftovers."""

from __future__ import annotations

import os
import pty
import random
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pykvm.lab import Lab

pytestmark = pytest.mark.usefixtures("lab")

PYKVM_LAB = [sys.executable, "-m", "pykvm", "lab"]
LIMIT_S = 120  # for what takes a second or two when the machine has nothing else to do


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run, and may write, in an empty directory of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def pykvm_lab(
    command: list[str], *options: str, input: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PYKVM_LAB, *options, "--", *command],
        input=input,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )


# ── codes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code_is_the_commands_own(code: int) -> None:
    assert pykvm_lab(sh(f"exit {code}")).returncode == code


def test_command_ended_by_a_signal_gives_128_plus_its_number() -> None:
    assert pykvm_lab(sh("kill -TERM $$")).returncode == 128 + signal.SIGTERM


def test_run_gives_minus_the_signal_as_subprocess_does(lab: Lab) -> None:
    assert lab.run(sh("kill -KILL $$"), timeout=LIMIT_S).returncode == -signal.SIGKILL


def test_missing_command_gives_127_and_its_name() -> None:
    done = pykvm_lab(["no-such-command"])
    assert done.returncode == 127
    assert b"no-such-command: No such file" in done.stderr


def test_file_that_is_no_program_gives_126() -> None:
    assert pykvm_lab(["/etc/passwd"]).returncode == 126


def test_timeout_gives_124() -> None:
    assert pykvm_lab(["sleep", "1000"], "--timeout", "0.5").returncode == 124


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


def test_any_bytes_pass_from_stdin_to_stdout() -> None:
    data = random.Random(1).randbytes(1_000_001)
    assert pykvm_lab(["cat"], input=data).stdout == data


def test_run_passes_any_bytes(lab: Lab) -> None:
    data = random.Random(2).randbytes(1_000_001)
    assert lab.run(["cat"], input=data, timeout=LIMIT_S).stdout == data


def test_stdout_and_stderr_stay_apart() -> None:
    done = pykvm_lab(sh("echo out; echo err >&2"))
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_stdout_and_stderr_to_one_file_keep_their_order(directory: Path) -> None:
    script = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done"
    with (directory / "both").open("wb") as both:
        subprocess.run([*PYKVM_LAB, "--", *sh(script)], stdout=both, stderr=both, check=True)
    lines = [f"{stream} {i}" for i in range(1, 6) for stream in ("out", "err")]
    assert (directory / "both").read_text().split("\n")[:-1] == lines


def test_large_output_arrives_whole() -> None:
    size = 32 << 20
    assert len(pykvm_lab(["head", "-c", str(size), "/dev/zero"]).stdout) == size


def test_stdin_that_nobody_reads_does_no_harm() -> None:
    assert pykvm_lab(["true"], input=bytes(8 << 20)).returncode == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_stream_that_is_closed_is_an_empty_one(closed: str) -> None:
    command = shlex.join([*PYKVM_LAB, "--", *sh("cat; exit 6")])
    done = subprocess.run(
        sh(f"{command} {closed}"), stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 6


def test_output_that_cannot_be_written_is_no_success() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*PYKVM_LAB, "--", "echo", "lost"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=LIMIT_S,
            check=False,
        )
    assert done.returncode == 125
    assert b"No space left on device" in done.stderr


def test_command_whose_output_nobody_reads_meets_sigpipe() -> None:
    command = [*PYKVM_LAB, "--", "yes"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(LIMIT_S) == 128 + signal.SIGPIPE


# ── surroundings ─────────────────────────────────────────────────────────────────────────────────


def test_kvm_works() -> None:
    script = "import fcntl; print(fcntl.ioctl(open('/dev/kvm'), 0xAE00))"  # KVM_GET_API_VERSION
    assert pykvm_lab([sys.executable, "-c", script]).stdout == b"12\n"


def test_environment_and_directory_are_the_callers(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREETING", "grüß\ngott")
    done = pykvm_lab(sh('printf "%s|%s|%s" "$GREETING" "$PWD" "$PYKVM_LAB"'))
    assert done.stdout.decode() == f"grüß\ngott|{directory}|1"


def test_what_is_written_in_the_current_directory_is_written_here(directory: Path) -> None:
    assert pykvm_lab(sh("umask; echo result >file")).returncode == 0
    assert (directory / "file").read_text() == "result\n"


def test_current_directory_may_be_where_the_lab_has_mounts_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shm:
        monkeypatch.chdir(shm)
        assert pykvm_lab(sh("echo result >file; pwd")).stdout == f"{shm}\n".encode()
        assert Path("file").read_text() == "result\n"


def test_what_is_written_elsewhere_vanishes(
    directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = pykvm_lab(sh(f"echo x >{elsewhere}/file && cat {elsewhere}/file"))
    assert done.stdout == b"x\n"
    assert list(elsewhere.iterdir()) == []


def test_what_is_written_below_a_write_directory_is_written_here(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = pykvm_lab(sh(f"echo x >{elsewhere}/file"), "--write", str(elsewhere))
    assert done.returncode == 0
    assert (elsewhere / "file").read_text() == "x\n"


def test_change_of_a_file_here_is_seen_by_the_next_command(lab: Lab, directory: Path) -> None:
    (directory / "file").write_text("old")
    assert lab.run(["cat", "file"], timeout=LIMIT_S).stdout == b"old"
    (directory / "file").write_text("newer")
    until = sh("until grep -q newer file; do :; done; cat file")
    assert lab.run(until, timeout=LIMIT_S).stdout == b"newer"


# ── leftovers ────────────────────────────────────────────────────────────────────────────────────

NAP = "1234.5"  # seconds, as nobody else would write them


def wait_until_no_nap(lab: Lab) -> None:
    """Fails by running into its time limit."""
    lab.run(sh(f"while pgrep -f 'sleep [{NAP[0]}]{NAP[1:]}'; do :; done"), timeout=LIMIT_S)


def test_background_process_ends_with_its_command(lab: Lab) -> None:
    assert lab.run(sh(f"sleep {NAP} & echo started"), timeout=LIMIT_S).stdout == b"started\n"
    wait_until_no_nap(lab)


def test_timeout_of_run_kills_all_the_command_started(lab: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        lab.run(sh(f"echo started; trap '' TERM HUP; setsid sleep {NAP} & wait"), timeout=3)
    assert caught.value.output == b"started\n"
    wait_until_no_nap(lab)


def test_commands_run_side_by_side(lab: Lab) -> None:
    def meet(ours: str, theirs: str) -> int:
        script = f"touch {ours}; until test -e {theirs}; do :; done"
        return lab.run(sh(script), timeout=LIMIT_S).returncode

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(meet, ["a", "b"], ["b", "a"])) == [0, 0]


# ── signals and the terminal ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def waiting() -> Iterator[subprocess.Popen[bytes]]:
    """A command that says "ready" and then waits, and says "caught" on a SIGINT."""
    script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.1; done"
    command = [*PYKVM_LAB, "--", *sh(script)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_sigint_reaches_the_command(waiting: subprocess.Popen[bytes]) -> None:
    waiting.send_signal(signal.SIGINT)
    assert waiting.communicate(timeout=LIMIT_S)[0] == b"caught\n"
    assert waiting.returncode == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_end_the_command(
    waiting: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    waiting.send_signal(number)
    assert waiting.wait(LIMIT_S) == 128 + number


def test_terminal_passes_keys_and_size_and_comes_back_as_it_was() -> None:
    terminal, slave = pty.openpty()
    termios.tcsetwinsize(slave, (33, 77))
    before = termios.tcgetattr(slave)
    command = [*PYKVM_LAB, "--", *sh("stty size; read word; echo got $word; tty; exit 5")]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        shown = read_until(terminal, b"33 77\r\n")
        os.write(terminal, b"hello\r")
        shown += read_until(terminal, b"/dev/pts/")
        assert process.wait(LIMIT_S) == 5
    assert b"got hello\r\n" in shown
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(terminal)


def read_until(fd: int, text: bytes) -> bytes:
    data = b""
    while text not in data:
        assert select.select([fd], [], [], LIMIT_S)[0], f"no {text!r} in {data!r}"
        data += os.read(fd, 4096)
    return data


# ── private labs: each of these boots one ────────────────────────────────────────────────────────

PRIVATE = ("--cpus", "1")  # not what the kept lab has


def test_kernel_panic_gives_125_and_the_consoles_last_lines() -> None:
    done = pykvm_lab(sh("echo c >/proc/sysrq-trigger"), *PRIVATE)
    assert done.returncode == 125
    assert b"Kernel panic" in done.stderr


def test_sigkill_leaves_no_process_and_no_file(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(directory))
    before = set(Path(os.environ["XDG_RUNTIME_DIR"]).rglob("*"))
    command = [*PYKVM_LAB, *PRIVATE, "--", *sh("echo ready; sleep 1000")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        descendants = [os.pidfd_open(pid) for pid in descendants_of(process.pid)]
        process.kill()
    assert len(descendants) == 4  # the supervisor, QEMU, two virtiofsd
    for pidfd in descendants:
        assert select.select([pidfd], [], [], LIMIT_S)[0], "a process is left"
        os.close(pidfd)
    assert list(directory.iterdir()) == []
    assert set(Path(os.environ["XDG_RUNTIME_DIR"]).rglob("*")) <= before


def descendants_of(pid: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [*children, *(below for child in children for below in descendants_of(child))]


def test_two_labs_run_at_once() -> None:
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(pykvm_lab, sh(f"exit {code}"), *PRIVATE) for code in (3, 4)]
        assert [run.result().returncode for run in runs] == [3, 4]
