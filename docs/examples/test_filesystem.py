"""A file system image, mounted by every test in a machine of its own. See docs/pytest.md; run it
with

pykvm lab -- pytest docs/examples/test_filesystem.py
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from pykvm.agent import GuestMachine

IMAGE = Path(tempfile.gettempdir()) / "pykvm-example.ext4"
if not IMAGE.exists():
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(IMAGE), "16M"], check=True)

# What is written goes to an overlay that ends with the test's machine: the image stays as it is.
pytestmark = pytest.mark.pykvm(disks=str(IMAGE))


@pytest.fixture
def mounted(vm: GuestMachine) -> GuestMachine:
    vm.run("mkdir /mnt; mount -t ext4 /dev/vda /mnt", check=True)
    return vm


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000])
def test_a_file_is_whole_after_another_mount(mounted: GuestMachine, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert mounted.run("ls /mnt").stdout == "lost+found\n"  # nobody was here before
    mounted.write_file("/mnt/file", data)
    mounted.run("umount /mnt && mount -t ext4 -o ro /dev/vda /mnt", check=True)
    assert mounted.read_file("/mnt/file") == data


def test_a_full_file_system_says_so(mounted: GuestMachine) -> None:
    done = mounted.run("dd if=/dev/zero of=/mnt/file bs=64k count=1000")
    assert "No space left on device" in done.stderr
    assert int(mounted.run("stat -c %s /mnt/file").stdout) > 0
