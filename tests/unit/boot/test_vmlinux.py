"""The vmlinux inside a bzImage: its size field, the cache, the seal."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import struct
from pathlib import Path

import pytest
from images import Load, bzimage, elf

from pykvm import boot
from pykvm.boot import payload, vmlinux, vmlinuxcache
from pykvm.boot.entry import BootSpec
from pykvm.boot.files import ImageFile
from pykvm.errors import BootError
from pykvm.layout import MIB
from pykvm.memory import GuestMemory

VMLINUX = elf(Load(16 * MIB, b"text" * 999), Load(20 * MIB, b"data" * 99 + bytes(1 << 16)))
PAYLOAD = gzip.compress(VMLINUX)
IMAGE = bzimage(PAYLOAD)


def boot_once(image: bytes = IMAGE, stamp: str = "") -> bytes:
    """Load `image`; what then lies at the vmlinux' two segments."""
    with GuestMemory(64 * MIB) as memory:
        assert boot.load(image, memory, BootSpec(stamp=stamp)).protocol == "linux64"
        return memory.read(16 * MIB, 999 * 4) + memory.read(20 * MIB, 99 * 4)


def entries(tmp_path: Path) -> list[Path]:
    return sorted(p for p in (tmp_path / "cache/pykvm/vmlinux").iterdir() if p.is_file())


def refuse_to_decompress(monkeypatch: pytest.MonkeyPatch) -> None:
    def decompress(data: memoryview, limit: int) -> bytes:
        raise AssertionError("decompressed although it is cached")

    monkeypatch.setattr(payload, "decompress", decompress)


def test_the_second_boot_takes_the_vmlinux_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = b"text" * 999 + b"data" * 99
    assert boot_once() == expected
    assert len(entries(tmp_path)) == 1
    refuse_to_decompress(monkeypatch)
    assert boot_once() == expected


def test_zeros_at_the_end_of_segments_are_not_kept(tmp_path: Path) -> None:
    boot_once()
    assert entries(tmp_path)[0].stat().st_size < len(VMLINUX)
    image = memoryview(entries(tmp_path)[0].read_bytes())
    from pykvm.boot import elf as loader

    before, after = loader.parse(memoryview(VMLINUX)), loader.parse(image)
    assert [s.memory_size for s in after.loadable] == [s.memory_size for s in before.loadable]
    assert after.loadable[1].file_size == 99 * 4


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def swap(path: Path) -> None:
    path.unlink()
    path.write_bytes(elf())


@pytest.mark.parametrize("damage", [flip, truncate, empty, swap, Path.unlink])
def test_a_damaged_entry_is_made_anew(damage: object, tmp_path: Path) -> None:
    expected = boot_once()
    (path,) = entries(tmp_path)
    intact = path.read_bytes()
    damage(path)  # type: ignore[operator]
    assert boot_once() == expected
    assert path.read_bytes() == intact


def test_kernels_that_differ_in_one_byte_have_entries_of_their_own(tmp_path: Path) -> None:
    other = bzimage(gzip.compress(VMLINUX.replace(b"data", b"DATA")))
    assert boot_once() != boot_once(other)
    assert len(entries(tmp_path)) == 2


def test_only_the_newest_entries_are_kept(tmp_path: Path) -> None:
    images = [
        bzimage(gzip.compress(elf(Load(16 * MIB, b"%3d" % i * 2000), Load(20 * MIB))))
        for i in range(vmlinuxcache.ENTRIES_MAX + 1)
    ]
    boot_once(images[0])
    (first,) = entries(tmp_path)
    for image in images[1:]:
        boot_once(image)
    assert len(entries(tmp_path)) == vmlinuxcache.ENTRIES_MAX
    assert first not in entries(tmp_path)


def test_reading_an_entry_leaves_it_untouched(tmp_path: Path) -> None:
    boot_once()
    (path,) = entries(tmp_path)
    before = path.stat()
    boot_once()
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino, before.st_mtime_ns, before.st_ctime_ns,
    )  # fmt: skip


def test_an_image_with_a_known_stamp_is_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = boot_once(stamp="stamp")
    monkeypatch.setattr(hashlib, "sha256", None)
    assert boot_once(stamp="stamp") == expected


def test_a_stamp_whose_entry_is_damaged_is_no_shortcut(tmp_path: Path) -> None:
    expected = boot_once(stamp="stamp")
    flip(entries(tmp_path)[0])
    assert boot_once(stamp="stamp") == expected


def test_many_stamps_are_not_kept(tmp_path: Path) -> None:
    for i in range(vmlinuxcache.IMAGES_MAX + 3):
        vmlinuxcache.remember(f"stamp{i}", "key")
    assert len(list((tmp_path / "cache/pykvm/vmlinux/images").iterdir())) == 3
    assert vmlinuxcache.recall(f"stamp{i}") == "key"


def test_a_file_system_without_sendfile_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def sendfile(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    expected = boot_once()
    monkeypatch.setattr(os, "sendfile", sendfile)
    assert boot_once() == expected


def test_an_entry_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_once()
    monkeypatch.setattr(os, "sendfile", lambda *_: 0)
    with pytest.raises(BootError, match=r"ends .* bytes too soon"):
        boot_once()


def test_booting_leaves_no_descriptor_open(tmp_path: Path) -> None:
    boot_once()
    before = os.listdir("/proc/self/fd")
    boot_once()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_kernel_warmed_up_is_not_decompressed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vmlinux.warm(ImageFile(memoryview(IMAGE)))
    refuse_to_decompress(monkeypatch)
    assert boot_once()


@pytest.mark.parametrize("image", [b"", b"no kernel", bzimage(), IMAGE[:-99], bzimage(b"?" * 99)])
def test_warming_up_what_is_no_kernel_is_no_error(image: bytes) -> None:
    vmlinux.warm(ImageFile(memoryview(image)))


def test_without_a_cache_the_kernel_boots_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/below"))
    assert boot_once()


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pykvm import cache

    def atomic_write(path: Path, data: bytes) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(cache, "atomic_write", atomic_write)
    assert boot_once()
    assert not entries(tmp_path)


def with_size(size: int) -> bytes:
    return bzimage(PAYLOAD[:-4] + struct.pack("<I", size))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (with_size(1 << 31), "--memory: the kernel has 2147483648 bytes decompressed"),
        (with_size(len(VMLINUX) + 1), "damaged"),
        (with_size(100), "--memory|damaged"),
        (bzimage(b"\x1f\x8b\x08"), "payload ends"),
    ],
)
def test_a_size_field_that_lies_is_refused(image: bytes, message: str) -> None:
    with GuestMemory(64 * MIB) as memory, pytest.raises(BootError, match=message):
        boot.load(image, memory, BootSpec())
