"""Kernels that are not Linux, made by others and packaged by Debian, start and print."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from pykvm import guest_programs
from pykvm.boot import apt
from pykvm.cache import cache_dir, locked
from pykvm.errors import HostError


def name_in(lists: apt.Apt, package: str) -> str:
    """The package itself, or the version of it that this Debian has: xen-hypervisor-4.20-amd64."""
    names = lists.names(package)
    return next((name for name in names if name == package or name.endswith("-amd64")), package)


def from_package(package: str, pattern: str) -> str:
    """A file of a Debian package, kept in pykvm's cache. Skips without one, but not in CI."""
    kept = cache_dir() / "test-packages" / package
    with locked("test-packages", print):
        try:
            if not list(kept.glob(pattern)):
                kept.mkdir(parents=True, exist_ok=True)
                deb = next(kept.glob("*.deb"), None) or apt.with_lists(
                    lambda lists: lists.download(name_in(lists, package), kept), print
                )
                apt.unpack(deb, kept)
        except HostError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"no {package}: {error}")
    return str(next(path for path in kept.glob(pattern) if path.is_file()))  # no dangling link


# A memory test never ends: this ends it when it has shown its name.
UNTIL = """
import sys
from pykvm import Machine, MachineConfig
from pykvm.console import Console

class Until(Console):
    def write(self, data):
        if b"Memtest86+ v" in vm.console_log:
            vm.stop()

config = MachineConfig(kernel=sys.argv[1], memory=64 << 20, cmdline="console=ttyS0,115200")
with Machine(config) as vm:
    outcome = vm.run(timeout=120, console=Until())
print(outcome.reason.name, outcome.report)
sys.exit(outcome.code)
"""


@pytest.mark.parametrize("image", ["memtest86+x64.bin", "memtest86+ia32.bin"])
def test_memtest86_starts_and_shows_its_name(in_lab, image: str) -> None:
    kernel = from_package("memtest86+", f"boot/{image}")
    assert in_lab([sys.executable, "-c", UNTIL, kernel]).stdout.startswith(b"QUIT")


def test_ipxe_starts_through_the_bios_and_finds_no_network(boot) -> None:
    result = boot(from_package("ipxe", "**/ipxe.lkrn"), code=255)  # it halts
    assert b"iPXE initialising devices...ok" in result.stdout
    assert b"No more network devices" in result.stdout
    assert b"No bootable device." in result.stdout


# iPXE has a script as its initrd; its network is a host at the other end of a socket, with a file.
NETBOOT = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from bootserver import BootServer
from pykvm import Machine, MachineConfig, NetConfig

with tempfile.TemporaryDirectory() as folder:
    script, socket = Path(folder, "script"), Path(folder, "socket")
    script.write_text("#!ipxe\\ndhcp && chain tftp://10.0.0.1/kernel\\n")
    cable = NetConfig("socket", where=str(socket))
    config = MachineConfig(kernel=sys.argv[2], initrd=(str(script),), nets=(cable,))
    kernel = Path(sys.argv[3]).read_bytes()
    with BootServer(socket, {"kernel": kernel}) as server, Machine(config) as vm:
        outcome = vm.run(timeout=180)
print(outcome.console.decode(errors="replace"), outcome.report, *server.log)
sys.exit(outcome.code)
"""


def test_ipxe_fetches_a_kernel_through_virtio_net(in_lab) -> None:
    ipxe = from_package("ipxe", "**/ipxe.lkrn")
    words = [sys.executable, "-c", NETBOOT, str(Path(__file__).parent), ipxe]
    result = in_lab([*words, guest_programs.path("hello-multiboot")])
    assert b"tftp://10.0.0.1/kernel... ok" in result.stdout
    assert b"ok: EAX holds the multiboot magic" in result.stdout  # what was fetched runs
    assert re.search(rb"( DISCOVER)+( REQUEST)+( kernel)+$", result.stdout.rstrip())


def test_xen_starts_by_multiboot_and_misses_its_dom0(boot) -> None:
    kernel = from_package("xen-hypervisor-4", "boot/xen-*.gz")
    words = ("-m", "256M", "--append", "console=com1 com1=115200,8n1 noreboot=0")
    result = boot(kernel, *words)  # it reboots: 0
    assert b"(XEN) Bootloader: pykvm" in result.stdout
    assert b"dom0 kernel not specified" in result.stdout
