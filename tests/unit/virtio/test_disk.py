"""What --disk means, and what the files behind it must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pykvm.errors import ConfigError
from pykvm.memory import GuestMemory
from pykvm.virtio.blk import CONFIG, WRITEBACK, Blk
from pykvm.virtio.config.disk import DiskConfig, parse_disk


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("disk.img", DiskConfig("disk.img")),
        ("a,ro", DiskConfig("a", read_only=True)),
        ("a,serial=x y,cache=none", DiskConfig("a", serial="x y", cache="none")),
        ("a,queues=4", DiskConfig("a", queues=4)),
        ("a,,b,ro", DiskConfig("a,b", read_only=True)),
    ],
)
def test_a_disk_is_a_file_and_its_options(text: str, config: DiskConfig) -> None:
    assert parse_disk(text) == config


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",ro",
        "a,rw",
        "a,serial",
        "a,cache=fast",
        f"a,serial={'x' * 21}",
        "a,format=raw",
        "a,queues=9",
        "a,queues=²",
    ],
)
def test_wrong_options_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--disk"):
        parse_disk(text)


def test_a_file_that_cannot_be_opened_is_the_users_mistake(tmp_path: Path) -> None:
    with GuestMemory(4096) as memory:
        for path in (tmp_path, tmp_path / "missing", Path("/dev/null")):
            with pytest.raises(ConfigError, match=f"--disk: {path}"):
                Blk(memory, DiskConfig(str(path)))


def test_the_driver_learns_the_size_in_sectors(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(3 * 512 + 100))
    with GuestMemory(4096) as memory:
        disk = Blk(memory, DiskConfig(str(path)))
        fields = CONFIG.unpack(disk.read_config())
        assert fields[0] == 3
        assert disk.read_config()[WRITEBACK] == 1
        disk.close()
