"""What --disk means, and what the files behind it must be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.errors import ConfigError
from pykvm.memory import GuestMemory
from pykvm.virtio.blk import CONFIG, WRITEBACK, Blk
from pykvm.virtio.config.disk import DiskConfig, parse_disk
from pykvm.virtio.config.limits import Limits


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("disk.img", DiskConfig("disk.img")),
        ("a,ro", DiskConfig("a", read_only=True)),
        ("a,serial=x y,cache=none", DiskConfig("a", serial="x y", cache="none")),
        ("a,queues=4", DiskConfig("a", queues=4)),
        ("a,overlay=on", DiskConfig("a", overlay="on")),
        ("a,overlay=b,,c", DiskConfig("a", overlay="b,c")),
        ("a,,b,ro", DiskConfig("a,b", read_only=True)),
        ("a,bps=10M,iops=500", DiskConfig("a", limits=Limits(bps=10 << 20, iops=500))),
        ("a,iops=2k,iops_max=9", DiskConfig("a", limits=Limits(iops=2048, iops_max=9))),
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
        "a,format=fast",
        "a,format=qcow2,serial=x",
        "vhost-user=",
        "vhost-user=a,ro",
        "vhost-user=a,reconnect=9999999999",
        "a,reconnect=1",
        "vhost-user=a,cache=none",
        "a,overlay=",
        "a,overlay=on,ro",
        "a,overlay=on,format=qcow2",
        "a,overlay=on,cache=none",
        "vhost-user=a,overlay=on",
        "a,queues=9",
        "a,queues=²",
        "a,bps=fast",
        "a,bps=0",
        "a,iops=-1",
        "a,bps=M",
        "a,bps_max=1M",
        "a,bps=9999999999G",
    ],
)
def test_wrong_options_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--disk"):
        parse_disk(text)


def test_a_burst_is_a_tenth_of_a_second_unless_it_is_given() -> None:
    assert Limits(bps=1000, iops=5).for_c() == {
        "bytes": 1000,
        "bytes_burst": 100,
        "ops": 5,
        "ops_burst": 1,
    }
    assert Limits(bps=1000, bps_max=7).for_c()["bytes_burst"] == 7


def test_a_file_that_cannot_be_opened_is_the_users_mistake(tmp_path: Path) -> None:
    with GuestMemory(4096) as memory:
        for path in (tmp_path, tmp_path / "missing", Path("/dev/null")):
            with pytest.raises(ConfigError, match=f"--disk: {path}"):
                Blk(memory, DiskConfig(str(path)))


@pytest.mark.parametrize("size", [0, 511])
def test_a_file_without_a_sector_is_no_disk(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(size))
    with GuestMemory(4096) as memory, pytest.raises(ConfigError, match="has no sector"):
        Blk(memory, DiskConfig(str(path)))


def test_bytes_behind_the_last_sector_are_not_left_out_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "disk"
    for size, said in ((1024, ""), (1100, "does not see its last 76 bytes")):
        path.write_bytes(bytes(size))
        with GuestMemory(4096) as memory:
            Blk(memory, DiskConfig(str(path))).close()
        error = capsys.readouterr().err
        assert said in error
        assert bool(said) == bool(error)


def test_the_driver_learns_the_size_in_sectors(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(3 * 512 + 100))
    with GuestMemory(4096) as memory:
        disk = Blk(memory, DiskConfig(str(path)))
        fields = CONFIG.unpack(disk.read_config())
        assert fields[0] == 3
        assert disk.read_config()[WRITEBACK] == 1
        disk.close()


def test_a_format_says_who_serves_the_disk() -> None:
    assert not parse_disk("a,format=raw").is_vhost
    assert parse_disk("a,format=qcow2").is_vhost
    stranger = parse_disk("vhost-user=/run/a,queues=2")
    assert (stranger.vhost_user, stranger.queues, stranger.is_vhost) == ("/run/a", 2, True)


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"QFI\xfb", "qcow2"), (bytes(64) + b"\x7f\x10\xda\xbe", "vdi"), (b"vhdxfile", "vhdx")],
)
def test_an_image_is_not_taken_for_a_raw_disk(tmp_path: Path, start: bytes, name: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(start.ljust(4096, b"\0"))
    with GuestMemory(1 << 16) as memory:
        with pytest.raises(ConfigError, match=f"add format={name}"):
            Blk(memory, DiskConfig(str(path)))
        Blk(memory, DiskConfig(str(path), format="raw")).close()


# ── overlays ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "path"), [("", "a"), (",ro", ""), (",overlay=on", ""), (",overlay=b", "b")]
)
def test_it_is_known_which_file_is_written(options: str, path: str) -> None:
    assert parse_disk("a" + options).written_path == path


def test_many_disks_share_the_base_of_their_overlays(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(bytes(1 << 16))
    base.chmod(0o400)
    with GuestMemory(1 << 20) as memory:
        configs = [DiskConfig(str(base), overlay=where) for where in ("on", "on", f"{base}.1")]
        disks = [Blk(memory, config) for config in configs]
        with pytest.raises(ConfigError, match="in use"):
            Blk(memory, configs[2])
        with pytest.raises(ConfigError, match="in use"):
            Blk(memory, DiskConfig(str(base)))
        for disk in disks:
            disk.close()
        Blk(memory, configs[2]).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "base.1"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda base, kept: kept.write_bytes(b"something else"), "is no overlay"),
        (lambda base, kept: kept.write_bytes(kept.read_bytes()[:-1]), "damaged"),
        (lambda base, kept: kept.write_bytes(b"PKVMOVL\n\2" + kept.read_bytes()[9:]), "version"),
        (lambda base, kept: base.write_bytes(bytes(1 << 15)), "changed"),
        (lambda base, kept: base.write_bytes(bytes(1 << 17)), "another base"),
        (lambda base, kept: os.utime(base, (1, 1)), "changed"),
        (lambda base, kept: (kept.unlink(), kept.mkdir()), "overlay="),
        (lambda base, kept: (kept.unlink(), os.mkfifo(kept)), "is not a file"),
        (lambda base, kept: (kept.unlink(), kept.symlink_to(base)), "in use"),
    ],
)
def test_a_file_that_is_no_overlay_of_this_base_is_refused(
    tmp_path: Path, spoil: Callable[[Path, Path], object], message: str
) -> None:
    base, kept = tmp_path / "base", tmp_path / "kept"
    base.write_bytes(bytes(1 << 16))
    config = DiskConfig(str(base), overlay=str(kept))
    with GuestMemory(1 << 20) as memory:
        Blk(memory, config).close()
        Blk(memory, config).close()
        spoil(base, kept)
        with pytest.raises(ConfigError, match=message):
            Blk(memory, config)


def test_an_overlay_is_no_disk_by_itself(tmp_path: Path) -> None:
    base, kept = tmp_path / "base", tmp_path / "kept"
    base.write_bytes(bytes(1 << 16))
    with GuestMemory(1 << 20) as memory:
        Blk(memory, DiskConfig(str(base), overlay=str(kept))).close()
        with pytest.raises(ConfigError, match="is an overlay"):
            Blk(memory, DiskConfig(str(kept)))
