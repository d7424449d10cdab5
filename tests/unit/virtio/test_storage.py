"""What --disk, --fs and --root mean together, and what the guest's init is told to mount."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pykvm.errors import ConfigError
from pykvm.memory import GuestMemory
from pykvm.virtio.config.share import ShareConfig, parse_share
from pykvm.virtio.config.storage import parse_storage, with_named_root
from pykvm.virtio.fs import Fs


@pytest.fixture
def disk(tmp_path: Path) -> str:
    """A file with ext4's magic number."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(0x438) + b"\x53\xef" + bytes(4096))
    return str(path)


def test_a_share_has_a_folder_and_a_tag() -> None:
    assert parse_share("/a,,b,tag=x,ro") == ShareConfig("/a,b", "x", read_only=True)
    assert parse_share("/a,tag=x").target == "/mnt/x"
    assert parse_share("/a,tag=x,mount=/y,cache=none").target == "/y"


@pytest.mark.parametrize(
    "text",
    [
        *("", "/a", "/a,tag=", ",tag=x", "/a,tag=a/b", "/a,tag=..", f"/a,tag={'x' * 37}"),
        *("/a,tag=x,cache=fast", "/a,tag=x,mount=y", "/a,tag=x,rw"),
    ],
)
def test_wrong_shares_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--fs"):
        parse_share(text)


def test_init_is_told_what_to_mount_with_the_root_first(disk: str, tmp_path: Path) -> None:
    shares = ["/a,tag=one", "/b,tag=two,ro,mount=/mnt/disk/b c"]
    parted = tmp_path / "parted"
    parted.write_bytes(bytes(462) + struct.pack("<4xB3xII32x", 0x83, 8, 8) + b"\x55\xaa")
    disks = [f"{disk},mount=/mnt/disk", "other", f"{parted},ro,mount=/deep/er,partition=2"]
    storage = parse_storage(disks, shares, f"{disk},fstype=xfs")
    assert storage.fstab().splitlines() == [
        "/dev/vda / xfs rw",
        "/dev/vdb /mnt/disk ext4 rw",
        "/dev/vdd2 /deep/er auto ro",
        "one /mnt/one virtiofs rw",
        "two /mnt/disk/b\\040c virtiofs ro",
    ]
    assert storage.file_systems() == ["xfs", "ext4"]


def test_a_root_is_a_disk_a_folder_or_a_tag(disk: str, tmp_path: Path) -> None:
    assert parse_storage([], [], disk).disks[0].mount == "/"
    assert parse_storage([], ["/a,tag=x"], "x").shares[0].mount == "/"
    folder = parse_storage([], [], f"{tmp_path},ro").shares[0]
    assert (folder.path, folder.mount, folder.read_only) == (str(tmp_path), "/", True)


@pytest.mark.parametrize("root", ["nowhere", "", "nowhere,format=qcow2"])
def test_a_root_that_is_none_is_refused_by_name(root: str) -> None:
    with pytest.raises(ConfigError, match="--root"):
        parse_storage([], [], root)


def test_two_at_one_place_are_refused(disk: str) -> None:
    with pytest.raises(ConfigError, match="one place"):
        parse_storage([f"{disk},mount=/"], [], disk)
    with pytest.raises(ConfigError, match="one tag"):
        parse_storage([], ["/a,tag=x", "/b,tag=x"], None)


def test_a_comma_in_a_name_is_written_twice_and_that_is_said() -> None:
    assert parse_storage(["a,,b.img"], [], None).disks[0].path == "a,b.img"
    with pytest.raises(ConfigError, match=r"'b\.img' is unknown \(a comma .* is written twice\)"):
        parse_storage(["a,b.img"], [], None)


@pytest.mark.parametrize(
    ("cmdline", "first"),
    [
        ("quiet root=/dev/vda rw", "/dev/vda / ext4 rw"),
        ("root=/dev/vdb2 rootfstype=xfs,ext4 quiet", "/dev/vdb2 / xfs rw"),
        ("root=/dev/vdb root=/dev/vda -- root=/dev/vdz", "/dev/vda / ext4 rw"),
        ("root=x rootfstype=virtiofs", "x / virtiofs rw"),
        ("root=/dev/ram0", "x /mnt/x virtiofs rw"),
    ],
)
def test_the_root_that_a_kernel_is_told_of_is_the_root(disk: str, cmdline: str, first: str) -> None:
    storage = with_named_root(parse_storage([disk, "other"], ["/a,tag=x"], None), cmdline)
    assert storage.fstab().splitlines()[0] == first


@pytest.mark.parametrize("root", ["/dev/sda1", "/dev/vdb", "/dev/vdax", "UUID=1", "x"])
def test_a_root_that_the_guest_does_not_have_is_refused_by_name(disk: str, root: str) -> None:
    with pytest.raises(ConfigError, match=f"--append: root={root} is nothing .* root=/dev/vda"):
        with_named_root(parse_storage([disk], ["/a,tag=x"], None), f"root={root}")


@pytest.mark.parametrize("option", ["partition=1", "fstype=xfs", "mount=x", "mount=/,fstype=a/b"])
def test_wrong_mounts_of_disks_are_refused_by_name(option: str) -> None:
    with pytest.raises(ConfigError, match="--disk"):
        parse_storage([f"a,{option}"], [], None)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with GuestMemory(1 << 16) as memory, pytest.raises(ConfigError, match="is no folder"):
        Fs(memory, ShareConfig(f"{tmp_path}/none", "x"))


def test_a_missing_virtiofsd_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with GuestMemory(1 << 16) as memory, pytest.raises(ConfigError, match="--fs: no virtiofsd"):
        Fs(memory, ShareConfig(str(tmp_path), "x"))
