"""A guest as suites of tests for hypervisors have them runs as on QEMU, with QEMU's exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pykvm.config import MachineConfig
from pykvm.machine import Machine
from pykvm.outcome import Reason

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from guests import build  # noqa: E402

SOURCES = [HERE / "unittest.S", HERE / "unittest.c"]
FLAGS = [*build.FREESTANDING, *build.BARE_64, "-Wl,-Ttext-segment=0x400000,-e,start"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64-bit code as an ELF32 file, which a multiboot loader takes."""
    elf = tmp_path_factory.mktemp("unittest") / "test.elf"
    build.compile_program(elf, SOURCES, FLAGS)
    flat = elf.with_suffix(".flat")
    subprocess.run(["objcopy", "-O", "elf32-i386", elf, flat], check=True, timeout=60)
    return flat


@pytest.mark.parametrize(("cpus", "value"), [(1, 0), (2, 0), (4, 5)])
def test_a_suites_guest_finds_cpus_arguments_environment_and_test_device(
    image: Path, cpus: int, value: int
) -> None:
    config = MachineConfig(
        kernel=image,
        initrd=(b"NR_CPUS=2\n\0",),
        cmdline=f"one two code={value}",
        memory=16 << 20,
        cpus=cpus,
    )
    with Machine(config) as vm:
        outcome = vm.run(timeout=20)
    said = outcome.console.decode()
    assert (outcome.reason, outcome.code) == (Reason.EXIT, value << 1 | 1), said
    assert said.startswith(f"arguments: {image} one two code={value}\nenvironment: NR_CPUS=2\n")
    assert f"{cpus} CPUs\n" in said
    assert "FAILED" not in said
