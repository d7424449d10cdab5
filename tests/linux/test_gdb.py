"""The real gdb on Debian's kernel, booted in the lab with two vCPUs; one boot for all of it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SESSION = Path(__file__).with_name("gdbsession.py")
# Started beside pykvm, whose end is the command's: gdb leaves the guest running.
SCRIPT = """
{boot} --gdb unix:{folder}/socket --wait-gdb -c 2 & machine=$!
tries=0
until [ -S {folder}/socket ] || [ $tries = 600 ]; do sleep 0.1; tries=$((tries + 1)); done
gdb -q -nx -batch -ex 'set pagination off' -ex 'set confirm off' {symbols} \
    -ex 'target remote {folder}/socket' -x {session} \
    > {folder}/said 2>&1 || {{ cat {folder}/said >&2; kill $machine; }}
wait $machine
"""


@pytest.fixture(scope="module")
def session(
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, str]:
    """What gdb said, and the guest's console."""
    folder = tmp_path_factory.mktemp("gdb")
    kernel, symbols = debian_kernel("6.12-cloud"), folder / "symbols"
    pykvm = [sys.executable, "-m", "pykvm"]
    subprocess.run([*pykvm, "kernel", "symbols", kernel, "-o", symbols], check=True)
    boot = shlex.join([*pykvm, "boot", kernel, "--timeout", "180"])
    script = SCRIPT.format(boot=boot, folder=folder, symbols=symbols, session=SESSION)
    result = in_lab(["sh", "-c", script], writable=[str(folder)])
    return (folder / "said").read_text(), result.stdout.decode(errors="replace")


def test_gdb_stops_in_start_kernel_and_knows_its_caller(session: tuple[str, str]) -> None:
    said, _ = session
    assert re.search(r"#0 .* in start_kernel \(\)", said), said
    assert re.search(r"#1 .* in x86_64_start_reservations \(\)", said), said


def test_steps_lose_no_instruction(session: tuple[str, str]) -> None:
    said, _ = session
    assert re.search(r"60 steps, \d\d places, \d indirect, 0 lost", said), said


def test_gdb_stops_in_a_system_call_with_two_vcpus(session: tuple[str, str]) -> None:
    said, _ = session
    assert re.search(r"#0 .* in __x64_sys_write \(\)", said), said
    assert 'Thread 1 "vCPU 0"' in said
    assert 'Thread 2 "vCPU 1"' in said


def test_gdb_sees_jiffies_change(session: tuple[str, str]) -> None:
    said, _ = session
    found = re.search(r"Old value = (\d+)\s+New value = (\d+)", said)
    assert found, said
    assert int(found[1]) != int(found[2])


def test_the_guest_boots_on_when_gdb_has_left(session: tuple[str, str]) -> None:
    said, console = session
    assert "detached" in said, said
    assert "reached init after" in console
