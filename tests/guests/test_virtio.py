"""A guest without an operating system drives virtio devices through their rings."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import start

from pykvm import guest_programs, layout
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError
from pykvm.machine import Machine
from pykvm.outcome import Outcome, Reason
from pykvm.virtio.config.disk import DiskConfig

RunGuest = Callable[..., Outcome]
TEXT = b"hello from the disk"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk of 16 sectors that begins with TEXT."""
    path = tmp_path / "disk"
    path.write_bytes(TEXT.ljust(16 * 512, b"\0"))
    return path


def passed(outcome: Outcome) -> bool:
    return outcome.reason is Reason.EXIT and outcome.code == 0 and b"FAILED" not in outcome.console


@pytest.mark.parametrize("cache", ["writeback", "unsafe"])
def test_a_guest_reads_and_writes_a_disk(run_guest: RunGuest, disk: Path, cache: str) -> None:
    config = DiskConfig(str(disk), cache=cache)
    outcome = run_guest("virtqueue", disks=(config,), transport="mmio", cmdline="count=20")
    assert passed(outcome)
    assert b'it begins with "hello from the disk"' in outcome.console
    written = disk.read_bytes()[512 : 512 + len(TEXT)]
    assert written == bytes(byte ^ 0xFF for byte in TEXT)


def test_a_guest_finds_a_disk_by_pci_and_takes_messages(run_guest: RunGuest, disk: Path) -> None:
    config = {"disks": (DiskConfig(str(disk)),), "transport": "pci"}
    outcome = run_guest("virtqueue", cmdline="pci=1 count=20 resets=50", **config)
    assert passed(outcome)
    written = disk.read_bytes()[512 : 512 + len(TEXT)]
    assert written == bytes(byte ^ 0xFF for byte in TEXT)


def test_a_request_by_pci_costs_no_exit(run_guest: RunGuest, disk: Path) -> None:
    config = {"disks": (DiskConfig(str(disk)),), "transport": "pci"}
    few, many = (
        run_guest("virtqueue", cmdline=f"pci=1 count={count}", **config).stats.exits
        for count in (110, 310)
    )
    assert many - few < 50  # one for each request would be two hundred


def test_a_disk_without_page_cache(run_guest: RunGuest, disk: Path) -> None:
    config = DiskConfig(str(disk), cache="none")
    try:
        outcome = run_guest("virtqueue", disks=(config,), transport="mmio")
    except ConfigError as error:
        pytest.skip(str(error))
    assert passed(outcome)


def test_a_read_only_disk_stays_as_it_is(run_guest: RunGuest, disk: Path) -> None:
    before = disk.read_bytes()
    config = DiskConfig(str(disk), read_only=True)
    outcome = run_guest("virtqueue", disks=(config,), transport="mmio")
    assert b"FAILED: sector 1 is written" in outcome.console
    assert disk.read_bytes() == before


def test_the_second_disk_is_at_the_second_place(
    run_guest: RunGuest, disk: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(32 * 512))
    outcome = run_guest(
        "virtqueue",
        disks=(DiskConfig(str(disk)), DiskConfig(str(other))),
        transport="mmio",
        cmdline=f"mmio={layout.VIRTIO_MMIO + layout.VIRTIO_MMIO_SIZE:#x} gsi=17",
    )
    assert passed(outcome)
    assert b"32 sectors\n" in outcome.console


def test_requests_cost_no_exit_but_the_kick(run_guest: RunGuest, disk: Path) -> None:
    runs = [
        run_guest(
            "virtqueue",
            disks=(DiskConfig(str(disk)),),
            transport="mmio",
            cmdline=f"count={count}",
        ).stats
        for count in (10, 110)
    ]
    # Two accesses in the interrupt handler, both answered in C; the kick is KVM's own affair. One
    # more for each request would be a hundred; KVM may cut the printing of a line in two.
    assert runs[1].exits - runs[0].exits < 290
    assert runs[1].exits_in_c - runs[0].exits_in_c < 290


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_nothing_is_left_open(run_guest: RunGuest, disk: Path, transport: str) -> None:
    def resources() -> tuple[int, int]:
        files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        opened = sum("anon_inode" in file or file == str(disk) for file in files)
        return opened, len(os.listdir("/proc/self/task"))

    config = {"disks": (DiskConfig(str(disk), queues=4),), "rng": True, "transport": transport}
    cmdline = f"pci={int(transport == 'pci')} resets=100"
    run_guest("virtqueue", cmdline=cmdline, **config)
    before = resources()
    for _ in range(3):
        assert passed(run_guest("virtqueue", cmdline=cmdline, **config))
    assert resources() == before


def test_a_machine_without_devices_loads_none_of_this() -> None:
    code = (
        "import sys; from pykvm import Machine, MachineConfig;"
        "from pykvm.guest_programs import path;"
        "vm = Machine(MachineConfig(kernel=path('debugexit'), memory=16 << 20));"
        "vm.run(timeout=20); vm.close();"
        "print(*(name for name in sys.modules if name.startswith(('pykvm.virtio', 'pykvm.pci'))))"
    )
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert loaded.split() == []


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_command_line_gives_a_guest_its_disk(disk: Path, transport: str) -> None:
    boot = [sys.executable, "-m", "pykvm", "boot", guest_programs.path("virtqueue")]
    boot += ["--disk", f"{disk},cache=unsafe", "--transport", transport]
    boot += ["--append", f"pci={int(transport == 'pci')}"]
    assert subprocess.run(boot, check=False, timeout=60).returncode == 0


def test_command_line_names_the_disk_it_cannot_open(tmp_path: Path) -> None:
    boot = [sys.executable, "-m", "pykvm", "boot", guest_programs.path("virtqueue")]
    done = subprocess.run(
        [*boot, "--disk", f"{tmp_path}/none"], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 125
    assert f"--disk: {tmp_path}/none".encode() in done.stderr


def test_a_disk_in_use_is_refused(run_guest: RunGuest, disk: Path) -> None:
    config = DiskConfig(str(disk))
    with pytest.raises(ConfigError, match="in use"):
        run_guest("virtqueue", disks=(config, config), transport="mmio")


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_machine_brings_what_hvc_has_to_its_console_and_forks(transport: str) -> None:
    """The test is the driver; the guest knows nothing of it, and ends."""
    text = b"from hvc0\n" * 300_000  # the guest has ended before all of it was taken
    config = MachineConfig(
        kernel=guest_programs.path("hello-elf64"),
        memory=16 << 20,
        console="virtio",
        transport=transport,
    )
    with Machine(config) as vm:
        assert vm.hvc is not None
        with vm.fork() as other:
            greeting = other.run(timeout=60).console  # by the serial port
        vm.memory.write(0x40_0000, text)
        vm.memory.write(0x2000, struct.pack("<QIHH", 0x40_0000, len(text), 0, 0))
        vm.memory.write(0x2400, struct.pack("<HHH", 0, 1, 0))
        start(vm.hvc, 8)
        outcome = vm.run(timeout=60)
    assert greeting
    assert Counter(outcome.console) == Counter(greeting + text)  # in whatever order
