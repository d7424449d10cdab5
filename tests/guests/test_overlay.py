"""A disk with an overlay: the guest reads what it wrote, and the base is never written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm import guest_programs
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError
from pykvm.machine import Machine
from pykvm.memory import GuestMemory
from pykvm.outcome import Outcome, Reason
from pykvm.snapshot.load import load
from pykvm.virtio.blk import Blk
from pykvm.virtio.config.disk import DiskConfig

RunGuest = Callable[..., Outcome]
TEXT = b"hello from the disk"
INVERTED = bytes(byte ^ 0xFF for byte in TEXT)  # what the guest writes to sector 1
LIMIT_S = 60.0
HEADER = 32
DATA = 8192  # where a small kept overlay has byte 0 of the disk: pykvm/virtio/overlay.py


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A disk that begins with TEXT, and is the same when the test ends."""
    path = tmp_path / "base"
    content = TEXT.ljust(256 * 512, b"\0")
    path.write_bytes(content)
    path.chmod(0o444)
    yield path
    assert path.read_bytes() == content


def machine(**options: object) -> Machine:
    kernel = guest_programs.path("virtqueue")
    options = {"memory": 16 << 20, "transport": "mmio", "cmdline": "count=20", **options}
    return Machine(MachineConfig(kernel=kernel, **options))


def passed(outcome: Outcome) -> bool:
    return outcome.reason is Reason.EXIT and outcome.code == 0 and b"FAILED" not in outcome.console


def held(disk: Blk) -> int:
    assert disk.overlay is not None
    return disk.overlay.count()


def clusters(config: DiskConfig) -> int:
    """How many clusters a kept overlay has."""
    with GuestMemory(1 << 20) as memory:
        disk = Blk(memory, config)
        try:
            return held(disk)
        finally:
            disk.close()


@pytest.mark.parametrize("cache", ["writeback", "unsafe"])
def test_what_a_guest_writes_is_in_the_overlay(base: Path, tmp_path: Path, cache: str) -> None:
    kept = tmp_path / "kept"
    config = DiskConfig(str(base), overlay=str(kept), cache=cache)
    for _ in range(2):  # begun, and gone on with
        with machine(disks=(config,)) as vm:
            assert passed(vm.run(timeout=LIMIT_S))
    assert kept.read_bytes()[DATA + 512 :].startswith(INVERTED)
    assert kept.read_bytes()[DATA:].startswith(TEXT)  # the same cluster, copied up
    assert clusters(config) == 1


def test_a_dropped_overlay_leaves_no_file(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    boot = [sys.executable, "-m", "pykvm", "boot", guest_programs.path("virtqueue")]
    boot += ["--disk", f"{base},overlay=on", "--transport", "mmio"]
    done = subprocess.run(
        boot,
        check=False,
        capture_output=True,
        timeout=LIMIT_S,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())


def test_machines_share_a_base_and_forks_have_overlays_of_their_own(base: Path) -> None:
    config = DiskConfig(str(base), overlay="on")
    with machine(disks=(config,)) as vm, vm.fork() as one, vm.fork() as other:
        for each in (one, other, vm):
            assert passed(each.run(timeout=LIMIT_S))


def test_reset_drops_what_was_written(base: Path) -> None:
    with machine(disks=(DiskConfig(str(base), overlay="on"),)) as vm, vm.fork() as fork:
        disk = fork.virtio[0].device
        assert isinstance(disk, Blk)
        for _ in range(3):
            assert passed(fork.run(timeout=LIMIT_S))
            assert held(disk) == 1
            fork.reset()
            assert held(disk) == 0


def content(disk: Blk) -> bytes:
    """What the guest finds on it."""
    with tempfile.TemporaryFile() as file:
        disk.copy_to(file.fileno())
        return os.pread(file.fileno(), 1 << 20, 0)


def test_a_fork_begins_with_what_was_written_and_goes_back_to_it(base: Path) -> None:
    with machine(disks=(DiskConfig(str(base), overlay="on"),)) as vm:
        assert passed(vm.run(timeout=LIMIT_S))
        origin = vm.virtio[0].device
        written = content(origin)
        assert written[512:].startswith(INVERTED)
        with vm.fork() as one, vm.fork() as other, one.fork() as grandchild:
            disks = [fork.virtio[0].device for fork in (one, other, grandchild)]
            assert [content(disk) for disk in disks] == [written] * 3
            assert [held(disk) for disk in disks] == [1] * 3
            disks[0].overlay.empty()  # as if the guest had written something else
            assert content(disks[0]) == base.read_bytes()
            assert [content(disk) for disk in (*disks[1:], origin)] == [written] * 3
            one.reset()
            assert content(disks[0]) == written
            disks[0].overlay.empty()
            with one.fork() as late:
                assert content(late.virtio[0].device) == base.read_bytes()
            vm.close()
            other.reset()  # the template is there as long as somebody goes back to it
            assert content(disks[1]) == written


def test_a_fork_with_another_disk_has_that_ones_content(base: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(bytes(256 * 512))
    with machine(disks=(DiskConfig(str(base), overlay="on"),)) as vm:
        assert passed(vm.run(timeout=LIMIT_S))
        with vm.fork(disks=(DiskConfig(str(tmp_path / "other")),)) as fork:
            assert content(fork.virtio[0].device) == bytes(256 * 512)


def test_snapshot_without_what_was_written_is_refused(base: Path, tmp_path: Path) -> None:
    with machine(disks=(DiskConfig(str(base), overlay="on"),)) as vm:
        vm.snapshot(tmp_path / "before")
        assert passed(vm.run(timeout=LIMIT_S))
        with pytest.raises(ConfigError, match="overlay=PATH"):
            vm.snapshot(tmp_path / "after")
    load(tmp_path / "before").close()


def test_snapshot_goes_with_its_kept_overlay_as_it_was_then(base: Path, tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "snap"
    with machine(disks=(DiskConfig(str(base), overlay=str(kept)),)) as vm:
        assert passed(vm.run(timeout=LIMIT_S))
        vm.snapshot(folder)
    load(folder).close()
    os.utime(kept)
    with pytest.raises(ConfigError, match="has changed since"):
        load(folder)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, DATA + 256 * 512), st.binary(min_size=1, max_size=64), st.booleans())
def test_a_damaged_overlay_is_refused_or_is_a_disk(
    base: Path, tmp_path: Path, at: int, junk: bytes, cut: bool
) -> None:
    """In the bitmap and the data any bytes have a meaning; fuzz_overlay.c reads such ones."""
    kept = tmp_path / "kept"
    kept.unlink(missing_ok=True)
    config = DiskConfig(str(base), overlay=str(kept))
    assert clusters(config) == 0
    whole = kept.read_bytes()
    kept.write_bytes(whole[:at] if cut else whole[:at] + junk + whole[at + len(junk) :])
    in_header = kept.read_bytes()[:HEADER] != whole[:HEADER]
    if (in_header or kept.stat().st_size < len(whole)) and kept.stat().st_size > 0:
        with pytest.raises(ConfigError, match=f"--disk: overlay={kept}"):
            clusters(config)
    else:
        clusters(config)
