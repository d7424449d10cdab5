"""The user's mistakes: one line that names the option, exit code 125, nothing left behind."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cli import main
from pykvm.cli_terminal import _tell
from pykvm.config import CMDLINE_DEFAULT, MachineConfig
from pykvm.outcome import Outcome, Reason, Stats

FLAT = ("--mode", "real")


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "sector"
    path.write_bytes(b"\xf4")
    return str(path)


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `pykvm WORDS` says before it leaves with 125, having opened nothing for good."""
    fds = os.listdir("/proc/self/fd")
    code: object
    try:
        code = main(words)
    except SystemExit as leaving:  # argparse
        code = leaving.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (125, "")
    assert "Traceback" not in captured.err
    assert len(os.listdir("/proc/self/fd")) == len(fds)
    return captured.err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "option"),
    [
        (["-m", "0"], "--memory"),
        (["-m", "junk"], "--memory"),
        (["-m", ""], "--memory"),
        (["-m", "-1G"], "--memory"),
        (["-m", "nan"], "--memory"),
        (["--memory=4K"], "--memory"),
        (["--memory", "1.0001G"], "--memory"),
        (["-c", "0"], "--cpus"),
        (["-c", "-1"], "--cpus"),
        (["-c", "two"], "--cpus"),
        (["-c", "1.5"], "--cpus"),
        (["--cpus", ""], "--cpus"),
        (["--cpu", "bad"], "--cpu"),
        (["--cpu", "host,+nosuch"], "--cpu"),
        (["--cpu", "host,avx"], "--cpu"),
        (["--timeout", "soon"], "--timeout"),
        (["--timeout", "-1"], "--timeout"),
        (["--timeout", "nan"], "--timeout"),
        (["--timeout", "inf"], "--timeout"),
        (["--protocol", "bad"], "--protocol"),
        (["--mode", "bad"], "--mode"),
        (["--load", "here"], "--load"),
        (["--load", "-1"], "--load"),
        (["--load", "0x1ffffffffffffffff"], "--load"),
        (["--entry", "0xq"], "--entry"),
        (["--initrd", "/nonexistent/initrd"], "--initrd"),
        (["--module", "/nonexistent/module words"], "--module"),
        (["--append", "x\0y"], "--append"),
        (["--nosuch"], "--nosuch"),
        (["--timeout"], "--timeout"),
    ],
)
def test_wrong_value_names_its_option(
    capsys: pytest.CaptureFixture[str], kernel: str, options: list[str], option: str
) -> None:
    assert option in complaint(capsys, "boot", kernel, *options)


@given(
    st.sampled_from(
        ["--memory", "--cpus", "--cpu", "--timeout", "--load", "--entry", "--mode", "--serial"]
    ),
    st.text(alphabet="0123456789xkMG.,+-e host\0é", max_size=8),
)
def test_any_text_as_a_value_is_understood_or_refused(option: str, text: str) -> None:
    with (
        tempfile.NamedTemporaryFile() as kernel,
        mock.patch("pykvm.cli_boot.boot", return_value=0),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        code = main(["boot", kernel.name, f"{option}={text}"])
    assert code in (0, 125)
    assert (option in said.getvalue()) == (code == 125)


def test_missing_kernel_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = complaint(capsys, "boot", str(tmp_path / "vmlinuz"))
    assert "KERNEL" in said
    assert "not there" in said


def test_directory_as_a_kernel_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "Is a directory" in complaint(capsys, "boot", str(tmp_path))


def test_unreadable_kernel_says_so(kernel: str) -> None:
    os.chmod(kernel, 0)
    # root may read it all the same, unless it gives up the capability to
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    command = [*(drop if os.getuid() == 0 else []), sys.executable, "-m", "pykvm", "boot", kernel]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def linux(tmp_path: Path) -> bytes:
    """What passes for a Linux, of 64 bits and not to be booted."""
    return b"\x7fELF\x02".ljust(64, b"\0") + b"Linux version 6.1"


def config_of(*words: str) -> MachineConfig:
    """What `pykvm boot WORDS` would boot."""
    with (
        mock.patch("pykvm.cli_boot.boot", return_value=0) as boot,
        mock.patch("pykvm.doctor.why_not_linux", return_value=None),
    ):
        assert main(["boot", *words]) == 0
    config: MachineConfig = boot.call_args.args[0]
    return config


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_packed_linux_is_a_linux(
    tmp_path: Path, linux: bytes, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "vmlinux.gz"
    path.write_bytes(pack(linux))
    config = config_of(str(path))
    assert config.kernel == linux
    assert config.cmdline == CMDLINE_DEFAULT
    assert config.initrd


def test_a_dash_is_standard_input(linux: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, linux)
    os.close(writer)
    kept = os.dup(0)
    os.dup2(reader, 0)
    try:
        assert config_of("-").kernel == linux
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reader)


def test_the_timeout_counts_for_a_kernel_from_a_pipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kernel: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    said = complaint(capsys, "boot", str(tmp_path / "pipe"), "--timeout", "0.01")
    assert "KERNEL" in said
    assert config_of(kernel, *FLAT, "--timeout", "7").patience == 7


def test_the_root_of_a_kernels_own_command_line_is_booted(tmp_path: Path, linux: bytes) -> None:
    (tmp_path / "vmlinux").write_bytes(linux)
    words = [str(tmp_path / "vmlinux"), "--disk", "disk", "--append", "root=/dev/vda1"]
    config = config_of(*words)
    assert (config.disks[0].mount, config.disks[0].partition) == ("/", 1)
    assert config_of(*words, "--initrd", "of its own").disks[0].mount == ""


@pytest.mark.parametrize("option", ["KERNEL", "--initrd", "--module"])
def test_what_is_no_plain_file_is_refused_for_the_lab(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, linux: bytes, option: str
) -> None:
    reader, writer = os.pipe()
    os.write(writer, linux)
    os.close(writer)
    (tmp_path / "vmlinux").write_bytes(linux)
    pipe, kernel = f"/dev/fd/{reader}", str(tmp_path / "vmlinux")
    words = [pipe] if option == "KERNEL" else [kernel, option, pipe]
    with mock.patch("pykvm.doctor.why_not_linux", return_value="no"):
        assert option in complaint(capsys, "boot", "--lab", *words)
    os.close(reader)


@pytest.mark.parametrize("words", [[""], ["--kernel", ""]])
def test_a_kernel_without_a_name_is_not_the_default_one(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert "KERNEL: its name is empty" in complaint(capsys, "boot", *words)


def test_two_kernels_are_one_too_many(capsys: pytest.CaptureFixture[str], kernel: str) -> None:
    assert "KERNEL" in complaint(capsys, "boot", "--kernel", kernel, kernel)
    assert "KERNEL" in complaint(capsys, "boot", kernel, kernel)


def test_command_for_a_guest_that_is_no_linux_is_refused(
    capsys: pytest.CaptureFixture[str], kernel: str
) -> None:
    assert "COMMAND" in complaint(capsys, "boot", kernel, *FLAT, "--", "uname")


@pytest.mark.parametrize("words", [["nosuch"], ["bot", "kernel"], [], ["--nosuch"]])
def test_unknown_command_leaves_with_125(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert "COMMAND" in complaint(capsys, *words)


@pytest.mark.parametrize(
    "words",
    [
        *(["--help"], ["boot", "--help"], ["boot", "-h"], ["--version"]),
        *(["help"], ["help", "boot"], ["help", "kernel", "fetch"]),
    ],
)
def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    try:
        code = main(words)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    assert code == 0
    assert "pykvm" in capsys.readouterr().out


def test_words_after_two_dashes_are_never_options(
    capsys: pytest.CaptureFixture[str], kernel: str
) -> None:
    assert "COMMAND" in complaint(capsys, "boot", kernel, *FLAT, "--", "ls", "--memory", "0")


@pytest.mark.parametrize("words", [["--help"], ["boot", "--help"], ["kernel", "ls"]])
def test_output_that_nobody_reads_is_no_traceback(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pykvm", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert b"Broken pipe" not in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["boot", "--help"], ["lesson", "2", "--solution"]])
def test_a_locale_with_few_letters_is_no_traceback(words: list[str]) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "pykvm", *words]
    done = subprocess.run(
        command, env=os.environ | locale, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_script_and_the_module_are_the_same_program() -> None:
    words = [sys.executable, "-m", "pykvm", "--version"]
    module = subprocess.run(words, capture_output=True, check=True, timeout=60)
    script = subprocess.run(
        [str(Path(sys.executable).with_name("pykvm")), "--version"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert module.stdout == script.stdout


@pytest.mark.parametrize(("code", "told"), [(127, True), (0, False)])
def test_files_that_a_kernel_could_not_unpack_are_told_of_at_a_bad_end(
    capsys: pytest.CaptureFixture[str], code: int, told: bool
) -> None:
    said = b"[    0.512345] Initramfs unpacking failed: write error\n"
    _tell(Outcome(Reason.EXIT, code, said, Stats(0, 0, 0.0)))
    assert ("give it more with --memory" in capsys.readouterr().err) is told
