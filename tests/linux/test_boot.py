"""Debian's kernels, as shipped, boot in the lab to pykvm's init and give their verdict."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pykvm.lab import Lab

KERNELS = ("6.12-cloud", "6.1-cloud", "6.1-generic")
BOOT = (sys.executable, "-m", "pykvm", "boot")
LIMIT_S = 400  # a boot takes some ten seconds; on a busy host many times that


@pytest.fixture
def boot(lab: Lab, debian_kernel):  # type: ignore[no-untyped-def]
    """Run ``pykvm boot`` with Debian's 6.12 cloud kernel in the lab."""

    def run(
        *words: str, kernel: str = KERNELS[0], stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        return lab.run([*BOOT, debian_kernel(kernel), *words], timeout=LIMIT_S, input=stdin)

    return run


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_as_shipped_reaches_init_with_the_cpus_asked_for(
    boot, without_crash, kernel, cpus
) -> None:
    result = without_crash(lambda: boot("-c", str(cpus), kernel=kernel))
    assert result.returncode == 0, result
    assert b"reached init after" in result.stdout
    assert f"pykvm: {cpus} CPU".encode() in result.stdout
    assert b"clocksource kvm-clock" in result.stdout or b"clocksource tsc" in result.stdout


@pytest.mark.parametrize("protocol", ["bzimage64", "linux64"])
def test_both_64_bit_entries_reach_init(boot, protocol) -> None:
    result = boot("--protocol", protocol)
    assert result.returncode == 0, result
    assert b"reached init after" in result.stdout


def test_the_command_runs_and_its_exit_code_is_ours(boot) -> None:
    result = boot("--add", "/bin/sh", "--", "sh", "-c", "echo 'one  two'; exit 42")
    assert result.returncode == 42, result
    assert b"one  two" in result.stdout


def test_a_command_that_is_not_there_gives_127(boot) -> None:
    assert boot("--", "no-such-command").returncode == 127


def test_standard_input_reaches_the_command(boot) -> None:
    result = boot(
        "--add", "/bin/sh", "--", "sh", "-c", "read line; echo got $line", stdin=b"milk\n"
    )
    assert result.returncode == 0, result
    assert b"got milk" in result.stdout


@pytest.mark.parametrize(("memory", "mib"), [("3G", 3072), ("3.5G", 3584), ("5G", 5120)])
def test_memory_on_both_sides_of_the_hole_is_used(boot, memory, mib) -> None:
    result = boot("-m", memory)
    assert result.returncode == 0, result
    shown = int(result.stdout.split(b" MiB of memory")[0].rsplit(b" ", 1)[1])
    assert 0.93 * mib < shown <= mib


def test_a_kernel_without_root_panics_and_says_what_to_do(boot) -> None:
    result = boot("--append", "console=ttyS0 quiet panic=-1 rdinit=/nowhere")
    assert result.returncode == 255, result
    assert b"kernel panic" in result.stderr
    assert b"Unable to mount root fs" in result.stderr
    assert b"remedy: the kernel found no root file system" in result.stderr


def test_a_panic_that_stays_is_ended_too(boot) -> None:
    result = boot("--append", "console=ttyS0 quiet panic=0 rdinit=/nowhere")
    assert result.returncode == 255, result
    assert b"the guest ended: kernel panic" in result.stderr


def test_a_timeout_tells_where_the_guest_was(boot) -> None:
    result = boot("--timeout", "1", "--append", "console=ttyS0")
    assert result.returncode == 124, result
    assert b"the guest ended: timeout" in result.stderr
    assert b"vCPU 0: at 0x" in result.stderr
