"""The real gdb on Debian's kernel, booted in the lab with two vCPUs; one boot for all of it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import gdbinlab
import pytest


@pytest.fixture(scope="module")
def session(
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, str]:
    """What gdb said, and the guest's console."""
    folder = tmp_path_factory.mktemp("gdb")
    # A few steps only, dear where the processor is emulated: tests/soak makes a thousand.
    command = gdbinlab.command(debian_kernel("6.12-cloud"), folder, steps=60, seconds=180)
    result = in_lab(command, writable=[str(folder)])
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
