"""What pykvm sees on a raw disk before the guest does: partitions and file systems."""

from __future__ import annotations

import shutil
import struct
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError
from pykvm.virtio.config.contents import SECTOR, file_system, partitions

LINUX, EXTENDED = 0x83, 0x05


def mbr(*entries: tuple[int, int, int]) -> bytes:
    """A partition table of (type, first sector, count)."""
    table = b"".join(struct.pack("<4xB3xII", *entry) for entry in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def disk(**sectors: bytes) -> BytesIO:
    """A disk with these bytes at ``at_N``, sector N."""
    file = BytesIO(bytes(64 * SECTOR))
    for name, data in sectors.items():
        file.seek(int(name.removeprefix("at_")) * SECTOR)
        file.write(data)
    return file


def test_partitions_of_an_mbr_have_linux_numbers() -> None:
    file = disk(
        at_0=mbr((LINUX, 8, 4), (0, 0, 0), (EXTENDED, 16, 40)),
        at_16=mbr((LINUX, 2, 4), (EXTENDED, 10, 10)),
        at_26=mbr((LINUX, 3, 4)),
    )
    assert partitions(file) == {1: 8, 3: 16, 5: 18, 6: 29}


def test_logical_partitions_in_a_circle_end() -> None:
    file = disk(at_0=mbr((EXTENDED, 1, 40)), at_1=mbr((LINUX, 2, 4), (EXTENDED, 0, 10)))
    assert partitions(file)[5] == 3


def test_partitions_of_a_gpt_are_found_by_their_place_in_the_table() -> None:
    header = struct.pack("<8s64xQII", b"EFI PART", 2, 4, 128)
    entry = bytes(16).join([b"\1" * 16, struct.pack("<Q", 40)])
    file = disk(at_0=mbr((0xEE, 1, 63)), at_1=header, at_2=bytes(128) + entry)
    assert partitions(file) == {2: 40}


def test_a_file_system_is_found_in_its_partition() -> None:
    file = disk(at_0=mbr((LINUX, 8, 4), (LINUX, 16, 4)), at_8=b"XFSB", at_16=b"hsqs")
    assert file_system(file, 1, "--disk") == "xfs"
    assert file_system(file, 2, "--disk") == "squashfs"
    assert file_system(file, 0, "--disk") is None


def test_a_partition_that_is_not_there_is_refused_with_those_that_are() -> None:
    file = disk(at_0=mbr((LINUX, 8, 4), (LINUX, 16, 4)))
    with pytest.raises(ConfigError, match=r"--disk: x: partition=3 .*there is: 1, 2"):
        file_system(file, 3, "--disk: x")
    with pytest.raises(ConfigError, match="there is: none"):
        file_system(BytesIO(b""), 1, "--disk")


@given(st.binary(max_size=4096), st.integers(0, 9))
def test_any_bytes_have_an_answer(data: bytes, partition: int) -> None:
    for start in (b"", mbr((EXTENDED, 1, 1)), mbr((0xEE, 1, 1)) + b"EFI PART"):
        try:
            file_system(BytesIO(start + data), partition, "--disk")
        except ConfigError:
            assert partition


@pytest.mark.parametrize(
    ("table", "kinds"),
    [("gpt", ["linux"] * 3), ("dos", ["linux", "extended", "linux"])],
)
def test_sfdisk_writes_what_is_read(tmp_path: Path, table: str, kinds: list[str]) -> None:
    sfdisk = shutil.which("sfdisk", path="/usr/sbin:/sbin:/usr/bin")
    if sfdisk is None:
        pytest.skip("needs sfdisk")
    path = tmp_path / "disk"
    path.write_bytes(bytes(16 << 20))
    script = f"label: {table}\n" + "".join(f"size=4M, type={kind}\n" for kind in kinds)
    subprocess.run([sfdisk, "-q", path], input=script.encode(), check=True, capture_output=True)
    said = subprocess.run([sfdisk, "-d", path], capture_output=True, check=True, text=True).stdout
    wanted = {
        int(line.partition(" :")[0].removeprefix(str(path))): int(
            line.split("start=")[1].split(",")[0]
        )
        for line in said.splitlines()
        if "start=" in line
    }
    with path.open("rb") as file:
        assert partitions(file) == wanted
