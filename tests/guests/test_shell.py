"""``pykvm shell`` on a terminal: IPython, and Python's own prompt where that is not installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

PROMPTS = {"ipython": r"In \[\d+\]: ", "python": r">>> "}
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\a]*\a)")
# Twice: in al, 0x40 at port 0x540; their sum to the port of exit codes.
TWO_READS = "66 ba 40 05 ec  88 c3 ec  00 d8 66 ba f8 05 ee eb fe"
SPIN = "fb eb fe"  # sti; jmp to itself


class Shell:
    """A ``pykvm shell`` that has come to its first prompt."""

    def __init__(self, code: str, kind: str, folder: Path) -> None:
        guest = folder / "guest"
        guest.write_bytes(bytes.fromhex(code))
        environment = os.environ | {"IPY_TEST_SIMPLE_PROMPT": "1", "IPYTHONDIR": str(folder / "ip")}
        # An import of None fails as that of a package that is not there.
        hide = "sys.modules['IPython'] = None; " if kind == "python" else ""
        start = f"import sys; {hide}from pykvm.cli import script; script()"
        words = [sys.executable, "-c", start, "shell", str(guest), "--mode", "long", "-m", "16M"]
        # The terminal's modes before and after, and the exit code.
        script = 'trap : INT; stty -g; "$@"; echo code $?; stty -g'
        self._prompt = PROMPTS[kind]
        self.process = pexpect.spawn(
            "sh", ["-c", script, "sh", *words], env=environment, encoding="utf-8", timeout=60
        )
        self.process.expect(self._prompt)
        self.modes, _, self.banner = str(self.process.before).partition("\r\n")

    def __call__(self, *lines: str) -> str:
        """What is printed before the next prompt."""
        for line in lines:
            self.process.sendline(line)
        self.process.expect(self._prompt)
        return ESCAPES.sub("", str(self.process.before)).strip()

    def leave(self, word: str | None = None) -> int:
        """The exit code; without a word by Ctrl-D. The terminal must be as it was."""
        if word is None:
            self.process.sendeof()
        else:
            self.process.sendline(word)
        self.process.expect(r"code (\d+)\r\n([0-9a-f:]+)\r\n")
        code, modes = int(self.process.match[1]), self.process.match[2]
        self.process.expect(pexpect.EOF)
        self.process.close()
        assert modes == self.modes
        return code


@pytest.fixture(params=PROMPTS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shells(tmp_path: Path) -> Iterator[list[Shell]]:
    """Those that were started, so that none is left."""
    started: list[Shell] = []
    yield started
    for each in started:
        each.process.close(force=True)


def test_a_device_is_written_attached_and_replaced_while_the_guest_is_paused(
    kind: str, shells: list[Shell], tmp_path: Path
) -> None:
    shell = Shell(TWO_READS, kind, tmp_path)
    shells.append(shell)
    assert "vm is the machine, before its first instruction" in shell.banner
    shell("three = vm.pio(0x540)(lambda offset, size, value: 3)")
    assert "vCPU 0 stopped at 0x100005: step" in shell("vm.step(2)")
    assert re.search(r"(^|\s)3$", shell("vm.vcpus[0].regs.rax & 0xff"))
    # exec: one line, because the prompts for more of them differ.
    shell(r"exec('class Forty(Device):\n def read(self, offset, size):\n  return 40')")
    shell("forty = vm.pio(0x540)(Forty)")
    assert "reason=Reason.EXIT, code=43" in shell("vm.run(timeout=60)")
    assert shell.leave("exit()" if kind == "python" else "exit") == 0


def test_what_a_notebook_shows_is_there(shells: list[Shell], tmp_path: Path) -> None:
    shell = Shell(TWO_READS, "ipython", tmp_path)
    shells.append(shell)
    shell("from IPython.core.formatters import HTMLFormatter, SVGFormatter")
    for what in ("vm.vcpus[0].regs", "vm.memory.walk(0x100000)", "vm.disassemble()"):
        assert "<table" in shell(f"HTMLFormatter()({what})[:200]"), what
    assert "<svg" in shell("SVGFormatter()(vm.memory.map())[:500]")
    assert "rip 0000000000100000" in shell("vm.vcpus[0].regs")


def test_ctrl_c_stops_the_guest_and_not_the_shell(
    kind: str, shells: list[Shell], tmp_path: Path
) -> None:
    shell = Shell(SPIN, kind, tmp_path)
    shells.append(shell)
    shell.process.sendline("print('run' + 'ning'); vm.run()")
    shell.process.expect("running")
    shell.process.sendintr()
    shell.process.expect("KeyboardInterrupt")
    shell.process.expect(PROMPTS[kind])
    assert "vCPU 0 stopped at 0x100001: step" in shell("vm.step()")
    assert shell.leave("exit()" if kind == "python" else "exit") == 0


def test_ctrl_d_leaves_and_nothing_is_left(shells: list[Shell], tmp_path: Path) -> None:
    shell = Shell(SPIN, "python", tmp_path)
    shells.append(shell)
    assert shell.leave() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["guest"]


@pytest.mark.parametrize("kind", ["ipython", "python"])
def test_without_a_standard_input_there_is_nothing_to_do(tmp_path: Path, kind: str) -> None:
    guest = tmp_path / "guest"
    guest.write_bytes(bytes.fromhex(SPIN))
    hide = "sys.modules['IPython'] = None; " if kind == "python" else ""
    start = f"import sys; {hide}from pykvm.cli import script; script()"
    words = [sys.executable, "-c", start, "shell", str(guest), "--mode", "long", "-m", "16M"]
    environment = os.environ | {"IPYTHONDIR": str(tmp_path / "ip")}
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *words],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done
    assert b"Traceback" not in done.stderr
