"""Debian's kernels, as shipped, boot in the lab to pykvm's init and give their verdict."""

from __future__ import annotations

import re

import pytest

KERNELS = ("6.12-cloud", "6.1-cloud", "6.1-generic")


@pytest.fixture
def debian(boot, debian_kernel):  # type: ignore[no-untyped-def]
    """Run ``pykvm boot`` with a kernel of Debian's in the lab."""

    def run(*words, kernel=KERNELS[0], **options):  # type: ignore[no-untyped-def]
        return boot(debian_kernel(kernel), *words, **options)

    return run


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_as_shipped_reaches_init_with_the_cpus_asked_for(debian, kernel, cpus) -> None:
    result = debian("-c", str(cpus), kernel=kernel)
    assert b"reached init after" in result.stdout
    assert f"pykvm: {cpus} CPU".encode() in result.stdout
    assert b"clocksource kvm-clock" in result.stdout or b"clocksource tsc" in result.stdout


@pytest.mark.parametrize("protocol", ["bzimage64", "linux64"])
def test_both_64_bit_entries_reach_init(debian, protocol) -> None:
    assert b"reached init after" in debian("--protocol", protocol).stdout


def test_the_command_runs_and_its_exit_code_is_ours(debian) -> None:
    result = debian("--add", "/bin/sh", "--", "sh", "-c", "echo 'one  two'; exit 42", code=42)
    assert b"one  two" in result.stdout


def test_a_command_that_is_not_there_gives_127(debian) -> None:
    debian("--", "no-such-command", code=127)


def test_standard_input_reaches_the_command(debian) -> None:
    script = "read line; echo got $line"
    result = debian("--add", "/bin/sh", "--", "sh", "-c", script, input=b"milk\n")
    assert b"got milk" in result.stdout


@pytest.mark.parametrize(("memory", "mib"), [("3G", 3072), ("3.5G", 3584), ("5G", 5120)])
def test_memory_on_both_sides_of_the_hole_is_used(debian, memory, mib) -> None:
    result = debian("-m", memory)
    shown = int(result.stdout.split(b" MiB of memory")[0].rsplit(b" ", 1)[1])
    assert 0.93 * mib < shown <= mib


def test_a_kernel_without_root_panics_and_says_what_to_do(debian) -> None:
    result = debian("--append", "console=ttyS0 quiet panic=-1 rdinit=/nowhere", code=255)
    assert b"kernel panic" in result.stderr
    assert b"Unable to mount root fs" in result.stderr
    assert b"remedy: the kernel found no root file system" in result.stderr


def test_a_panic_that_stays_is_ended_too(debian) -> None:
    result = debian("--append", "console=ttyS0 quiet panic=0 rdinit=/nowhere", code=255)
    assert b"the guest ended: kernel panic" in result.stderr
    # The kernel is stripped: what the function is called it says itself.
    assert re.search(rb"vCPU 0: at 0xffffffff[0-9a-f]+ <(\w*delay\w*|panic)\+0x", result.stderr)


def test_a_timeout_tells_where_the_guest_was(debian) -> None:
    result = debian("--append", "console=ttyS0", seconds=1, code=124)
    assert b"the guest ended: timeout" in result.stderr
    assert b"vCPU 0: at 0x" in result.stderr
