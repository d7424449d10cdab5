"""Differential snapshots: the pages that changed since the base, and a guest that is whole."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm import guest_programs
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError
from pykvm.machine import Machine
from pykvm.outcome import Outcome, Reason
from pykvm.snapshot import chain, format
from pykvm.snapshot.compact import compact
from pykvm.snapshot.load import load
from pykvm.virtio.config.disk import DiskConfig

MEMORY = 16 << 20
TIMEOUT_S = 60.0
PAGE = 4096
HOST_WRITES = 0x60_0000  # gpa where nothing of the guest's is
REFUSAL = "is damaged|its format is version|has changed since|is another snapshot|not there any"
FILES = (format.HEAD, format.STATE, format.MEMORY)
PYKVM = [sys.executable, "-m", "pykvm"]


def machine(cmdline: str = "rounds=40 ticks=1 touch=2", **options: object) -> Machine:
    kernel = guest_programs.path("snapshot")
    options = {"memory": MEMORY, **options}
    vm = Machine(MachineConfig(kernel=kernel, cmdline=cmdline, **options))
    vm.on_snapshot_request = vm.stop
    return vm


def memory_of(folder: Path) -> bytes:
    with load(folder) as template, template.memory() as memory:
        return memory.read(0, MEMORY)


def pages_in(folder: Path) -> int:
    """How many pages a differential snapshot has."""
    return (
        sum(region.size for region in chain.Link(str(folder), chain.read_head(str(folder))).ranges)
        // PAGE
    )


def is_full(folder: Path) -> bool:
    return "base" not in chain.read_head(str(folder))


def passed(outcome: Outcome) -> bool:
    return outcome.reason is Reason.EXIT and outcome.code == 0 and b"FAILED" not in outcome.console


def nonces(outcome: Outcome) -> set[bytes]:
    return set(re.findall(rb"nonce (\w+)", outcome.console))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `full`, `one` on it and `two` on `one`, each with a page of the host's more.

    It is not where they were taken, so that no copy finds a base there."""
    folder = tmp_path_factory.mktemp("taken")
    with machine("rounds=4 ask=2 touch=4") as vm:
        vm.run(timeout=TIMEOUT_S)
        vm.memory.write(HOST_WRITES, b"zero")
        vm.memory.write(HOST_WRITES + 8 * PAGE, b"to be wiped")
        vm.snapshot(folder / "full")
        vm.memory.write(HOST_WRITES, b"once")
        vm.memory.write(HOST_WRITES + 8 * PAGE, bytes(PAGE))
        vm.snapshot(folder / "one", base=folder / "full")
        vm.memory.write(HOST_WRITES + PAGE, b"again")
        vm.memory.write(HOST_WRITES + 32 * PAGE, bytes(range(256)) * 16 * 32)
        vm.snapshot(folder / "two", base=folder / "one")
    return folder.rename(folder.with_name("saved"))


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "saved")
    return tmp_path / "saved"


# ── what is in them ──────────────────────────────────────────────────────────────────────────────


def test_a_differential_snapshot_has_the_pages_that_changed(saved: Path) -> None:
    assert is_full(saved / "full")
    assert pages_in(saved / "one") == 2
    assert pages_in(saved / "two") == 33
    assert memory_of(saved / "full")[HOST_WRITES:].startswith(b"zero")
    one, two = memory_of(saved / "one"), memory_of(saved / "two")
    assert one[HOST_WRITES:].startswith(b"once")
    assert one[HOST_WRITES + 8 * PAGE :].startswith(bytes(PAGE))  # zeros over what was there
    assert two[HOST_WRITES:].startswith(b"once")
    assert two[HOST_WRITES + PAGE :].startswith(b"again")
    assert (saved / "one" / "memory").stat().st_blocks * 512 < 16 * PAGE


@pytest.mark.parametrize("cpus", [1, 2])
def test_guest_restored_from_a_chain_goes_on_where_it_was(tmp_path: Path, cpus: int) -> None:
    with machine(f"rounds=5 ask=3 touch=4 cpus={int(cpus > 1)}", cpus=cpus) as vm:
        vm.snapshot(tmp_path / "full")
        first = vm.run(timeout=TIMEOUT_S)
        vm.snapshot(tmp_path / "one", base=tmp_path / "full")
        vm.snapshot(tmp_path / "two", base=tmp_path / "one")
    assert pages_in(tmp_path / "two") == 0
    for name in ("two", "one"):
        with Machine.restore(tmp_path / name) as restored:
            again = restored.run(timeout=TIMEOUT_S)
        assert passed(again)
        assert re.findall(rb"round (\d+)", again.console) == [b"4", b"5"]
        assert nonces(again) == nonces(first)


def test_every_snapshot_of_a_long_chain_is_the_memory_of_its_moment(tmp_path: Path) -> None:
    moments = []
    with machine("rounds=1000000 ticks=1 touch=3") as vm:
        for step in range(8):
            vm.run(timeout=0.05)
            vm.memory.write(HOST_WRITES + (step % 3) * PAGE, bytes([step]))
            base = {"base": tmp_path / f"{step - 1}"} if step else {}
            vm.snapshot(tmp_path / f"{step}", **base)
            moments.append(vm.memory.read(0, MEMORY))
            assert step == 0 or 0 < pages_in(tmp_path / f"{step}") < 64
    for step, moment in enumerate(moments):
        assert memory_of(tmp_path / f"{step}") == moment


def test_any_snapshot_that_a_machine_goes_on_from_can_be_the_base(saved: Path) -> None:
    with Machine.restore(saved / "two") as vm, tempfile.TemporaryDirectory() as scratch:
        vm.run(timeout=TIMEOUT_S)
        moment = vm.memory.read(0, MEMORY)
        for name in ("full", "one", "two"):
            vm.snapshot(Path(scratch) / name, base=saved / name)
            assert memory_of(Path(scratch) / name) == moment
        sizes = [pages_in(Path(scratch) / name) for name in ("full", "one", "two")]
    assert sizes[0] > sizes[2]
    assert sizes[1] > sizes[2]
    assert 0 < sizes[2] < 30  # its own run's: not those that were copied when it was restored


def test_full_snapshot_of_a_machine_from_a_chain_has_all(saved: Path, tmp_path: Path) -> None:
    with Machine.restore(saved / "two") as vm:
        vm.snapshot(tmp_path / "whole")
        assert memory_of(tmp_path / "whole") == vm.memory.read(0, MEMORY)


def test_fork_and_reset_of_a_machine_from_a_chain(saved: Path, tmp_path: Path) -> None:
    with Machine.restore(saved / "two") as vm:
        before = vm.memory.read(0, MEMORY)
        for _ in range(3):
            assert passed(vm.run(timeout=TIMEOUT_S))
            vm.memory.write(HOST_WRITES + 40 * PAGE, b"in a page that is mapped")
            vm.memory.write(HOST_WRITES, b"in one that is copied")
            vm.reset()
            assert vm.memory.read(0, MEMORY) == before
        beneath = os.fstat(vm.memory.file).st_ino
        with vm.fork() as fork:
            assert os.fstat(fork.memory.file).st_ino == beneath  # nothing was copied for it
            fork.snapshot(tmp_path / "of-the-fork", base=saved / "two")
            assert memory_of(tmp_path / "of-the-fork") == fork.memory.read(0, MEMORY)
            assert passed(fork.run(timeout=TIMEOUT_S))
        assert pages_in(tmp_path / "of-the-fork") == 1  # its generation id


def test_pages_that_go_back_to_what_they_were_are_found(saved: Path, tmp_path: Path) -> None:
    """A reset, or a balloon, undoes changes that a snapshot was taken with."""
    with Machine.restore(saved / "one") as vm:
        vm.memory.write(HOST_WRITES + 3 * PAGE, b"for a while")
        vm.snapshot(tmp_path / "while", base=saved / "one")
        vm.memory.discard(HOST_WRITES + 3 * PAGE, PAGE)
        vm.snapshot(tmp_path / "after", base=tmp_path / "while")
        assert memory_of(tmp_path / "after") == vm.memory.read(0, MEMORY)
        assert pages_in(tmp_path / "after") == 1


@pytest.mark.parametrize("is_restored", [False, True])
def test_what_devices_write_is_among_the_changes(tmp_path: Path, is_restored: bool) -> None:
    """KVM's dirty log would not have it: the disk is read by a C thread, the ring by Python."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"hello from the disk".ljust(64 * 512, b"\0"))
    config = MachineConfig(
        kernel=guest_programs.path("virtqueue"),
        memory=MEMORY,
        cmdline="count=20",
        transport="mmio",
        disks=(DiskConfig(str(disk), read_only=True),),
        rng=True,
    )
    with Machine(config) as vm:
        vm.snapshot(tmp_path / "full")
        if is_restored:
            vm = Machine.restore(tmp_path / "full")
        with vm:
            assert b"hello from the disk" not in vm.memory.read(0, MEMORY)
            assert b'it begins with "hello' in vm.run(timeout=TIMEOUT_S).console
            vm.snapshot(tmp_path / "diff", base=tmp_path / "full")
            moment = vm.memory.read(0, MEMORY)
    assert b"hello from the disk" in moment
    assert memory_of(tmp_path / "diff") == moment
    assert pages_in(tmp_path / "diff") < 64


# ── bases that are none ──────────────────────────────────────────────────────────────────────────


def test_missing_base_is_refused_by_its_name(copied: Path) -> None:
    (copied / "full").rename(copied / "elsewhere")
    with pytest.raises(ConfigError, match=r"its base .*/full is not there any more"):
        load(copied / "two")


def test_another_snapshot_in_the_place_of_the_base_is_refused(copied: Path) -> None:
    with Machine.restore(copied / "full") as vm:
        vm.snapshot(copied / "full")
    with pytest.raises(ConfigError, match="another snapshot than the base"):
        load(copied / "one")


def rewrite(folder: Path, **fields: object) -> str:
    """Change fields of a snapshot's head, its checksum being right; returns the checksum."""
    head = json.loads((folder / format.HEAD).read_text()) | fields
    head["checksum"] = format.checksum(head)
    (folder / format.HEAD).write_text(json.dumps(head))
    return str(head["checksum"])


def test_base_with_another_head_is_refused(copied: Path) -> None:
    rewrite(copied / "full", saved="yesterday")
    with pytest.raises(ConfigError, match="full has changed since"):
        load(copied / "two")


def test_damaged_memory_of_a_base_is_refused_by_its_name(copied: Path) -> None:
    memory = copied / "full" / format.MEMORY
    memory.chmod(0o600)
    with open(memory, "r+b") as file:
        file.seek(HOST_WRITES + 5 * PAGE)
        file.write(b"x")
    with pytest.raises(ConfigError, match="saved/full is damaged: memory from 0x600000"):
        load(copied / "two")


def test_bases_in_a_circle_are_refused(copied: Path) -> None:
    """Forged: an honest checksum cannot be part of itself."""
    one = json.loads((copied / "one" / format.HEAD).read_text())
    two = json.loads((copied / "two" / format.HEAD).read_text())
    reference = {**one["base"], "id": two["id"], "path": str(copied / "two"), "relative": "../two"}
    known = rewrite(copied / "one", base={**reference, "checksum": "forged"})
    rewrite(copied / "two", base={**two["base"], "checksum": known}, compacted=["forged"])
    with pytest.raises(ConfigError, match="lead back to"):
        load(copied / "two")


def test_chain_that_is_too_long_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "LONGEST", 2)
    load(copied / "one").close()
    with pytest.raises(ConfigError, match="compact"):
        load(copied / "two")


@pytest.mark.parametrize(
    "places",
    [[[1, PAGE, 0]], [[0, PAGE, 0], [0, PAGE, 0]], [[0, 2 * MEMORY, 0]], [[0, "x", 0]], 7],
)
def test_pages_at_impossible_places_are_refused(copied: Path, places: object) -> None:
    memory = json.loads((copied / "one" / format.HEAD).read_text())["memory"]
    rewrite(copied / "one", memory={**memory, "pages": places})
    with pytest.raises(ConfigError, match="damaged"):
        load(copied / "one")


def test_base_of_another_machine_is_refused(saved: Path, tmp_path: Path) -> None:
    with machine() as stranger, pytest.raises(ConfigError, match="does not go on from there"):
        stranger.snapshot(tmp_path / "snap", base=saved / "full")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["one", "full"])
def test_snapshot_does_not_take_the_place_of_its_base(copied: Path, name: str) -> None:
    with Machine.restore(copied / "one") as vm, pytest.raises(ConfigError, match="its own base"):
        vm.snapshot(copied / name, base=copied / "one")
    load(copied / "two").close()


def test_chain_may_be_moved_or_copied_together(saved: Path, copied: Path, tmp_path: Path) -> None:
    copied.rename(tmp_path / "moved")
    assert memory_of(tmp_path / "moved" / "two") == memory_of(saved / "two")


def content(folder: Path) -> tuple[object, ...]:
    """All that a machine made of the snapshot would have."""
    with load(folder) as template, template.memory() as memory:
        return template.config, template.entry, template.parts, memory.read(0, MEMORY)


def flip(at: float, mask: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        start = int(at * (len(data) - 1))
        end = min(start + len(mask), len(data))
        changed = bytes(a ^ b for a, b in zip(data[start:end], mask, strict=False))
        return data[:start] + changed + data[end:]

    return change


CHANGES = st.one_of(
    st.builds(flip, st.floats(0, 1), st.binary(min_size=1, max_size=64)),
    st.builds(flip, st.floats(0.37, 0.39), st.binary(min_size=1, max_size=64)),  # changed pages
    st.floats(0, 1).map(lambda part: lambda data: data[: int(part * (len(data) - 1))]),
    st.binary(min_size=1, max_size=9000).map(lambda more: lambda data: data + more),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["full", "one", "two"]), st.sampled_from(FILES), CHANGES)
def test_damaged_chain_is_refused_or_the_same(
    saved: Path, link: str, name: str, change: Callable[[bytes], bytes]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "saved"
        shutil.copytree(saved, copy)
        (copy / link / name).chmod(0o600)
        (copy / link / name).write_bytes(change((saved / link / name).read_bytes()))
        try:
            found: object = content(copy / "two")
        except ConfigError as error:
            found = str(error)
        assert found == content(saved / "two") or re.search(REFUSAL, str(found))


# ── compaction ───────────────────────────────────────────────────────────────────────────────────


def test_compacted_snapshot_is_the_same_and_needs_no_base(copied: Path, tmp_path: Path) -> None:
    before = content(copied / "two")
    compact(copied / "two", tmp_path / "out")
    compact(copied / "two")
    shutil.rmtree(copied / "full")
    shutil.rmtree(copied / "one")
    for folder in (copied / "two", tmp_path / "out"):
        assert is_full(folder)
        assert content(folder) == before
        with Machine.restore(folder) as vm:
            assert passed(vm.run(timeout=TIMEOUT_S))


def test_what_stands_on_a_compacted_snapshot_goes_on_standing(copied: Path) -> None:
    before = content(copied / "two")
    with Machine.restore(copied / "one") as vm:
        compact(copied / "one")
        compact(copied / "one")  # a second time, it is a copy
        shutil.rmtree(copied / "full")
        assert content(copied / "two") == before
        vm.snapshot(copied / "three", base=copied / "one")  # it goes on from what it was
        assert memory_of(copied / "three") == vm.memory.read(0, MEMORY)
        assert pages_in(copied / "three") == 1


def test_compaction_does_not_take_the_place_of_what_it_stood_on(copied: Path) -> None:
    with pytest.raises(ConfigError, match="stands on it"):
        compact(copied / "two", copied / "full")
    load(copied / "one").close()


def test_compaction_of_a_damaged_chain_is_refused(copied: Path) -> None:
    """Even when only the disk has changed what it holds, so that the stamp is that of before."""
    memory = copied / "one" / format.MEMORY
    memory.chmod(0o600)
    with open(memory, "r+b") as file:
        file.seek(HOST_WRITES)
        file.write(b"else")
    head = json.loads((copied / "one" / format.HEAD).read_text())
    from pykvm.boot.files import stamp

    head["memory"]["stamp"] = stamp(os.stat(memory))
    known = rewrite(copied / "one", memory=head["memory"])
    base = json.loads((copied / "two" / format.HEAD).read_text())["base"]
    rewrite(copied / "two", base={**base, "checksum": known})
    load(copied / "two").close()
    with pytest.raises(ConfigError, match="one is damaged: memory from 0x600000"):
        compact(copied / "two")
    assert not is_full(copied / "two")


KILLED = """
import os, signal, sys
from pykvm.machine import Machine
from pykvm.snapshot.compact import compact
import pykvm.snapshot.save as save

folder, what, left = sys.argv[1], sys.argv[2], int(sys.argv[3])

def dying(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

def die():
    for name in ("mkdir", "truncate", "pwrite", "fsync", "fchmod", "rename"):
        setattr(os, name, dying(getattr(os, name)))
    save.shutil.rmtree = dying(save.shutil.rmtree)

if what == "compact":
    die()
    compact(folder + "/two")
else:
    with Machine.restore(folder + "/one") as vm:
        die()
        vm.snapshot(folder + "/two", base=folder + "/one")
"""


@pytest.mark.parametrize("what", ["compact", "snapshot"])
def test_killed_at_any_step_leaves_one_whole_snapshot(copied: Path, what: str) -> None:
    before = content(copied / "two")
    seen = set()
    for step in range(1, 60):
        command = [sys.executable, "-c", KILLED, str(copied), what, str(step)]
        code = subprocess.run(command, check=False, timeout=60).returncode
        now = content(copied / "two")
        seen.add(is_full(copied / "two") if what == "compact" else now == before)
        assert now == before or what == "snapshot"
        if code == 0:
            break
        assert code == -signal.SIGKILL
    else:
        pytest.fail("the script never came to its end")
    assert seen == {True, False}  # the old one and the new one
    if what == "compact":
        compact(copied / "two")
    else:
        with Machine.restore(copied / "one") as vm:
            vm.snapshot(copied / "two", base=copied / "one")
    assert sorted(os.listdir(copied)) == ["full", "one", "two"]  # nothing else is left


def test_full_disk_leaves_the_chain_as_it_was(saved: Path) -> None:
    pykvm = " ".join(PYKVM)
    script = f"""
        D=$(mktemp -d) && mount -t tmpfs -o size=1M none $D
        cp -r --sparse=always {saved}/* $D; dd if=/dev/zero of=$D/fill bs=4k 2>/dev/null
        {pykvm} snapshot compact $D/two; echo code $?
        {pykvm} restore {saved}/one --diff --snapshot-at console:^round $D/three; echo code $?
        {pykvm} snapshot show $D/two --verify; ls -A $D
        umount $D; rmdir $D"""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "Operation not permitted" in done.stderr or "/dev/kvm" in done.stderr:
        pytest.skip("no user namespaces here, or no /dev/kvm in them")
    assert done.stderr.count("No space left on device; nothing was saved") == 2
    assert "code 125" in done.stdout  # of the compaction
    assert "ok: all rounds played\ncode 0" in done.stdout  # the guest goes on
    assert done.stdout.endswith("all of it read, and as it was\nfill\nfull\none\ntwo\n")


# ── the command line ─────────────────────────────────────────────────────────────────────────────


def pykvm(*words: object) -> subprocess.CompletedProcess[str]:
    command = [*PYKVM, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_command_line_takes_shows_and_compacts_them(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    boot = ["boot", guest_programs.path("snapshot"), "-m", "16M", "--append", "rounds=400"]
    boot += ["--snapshot-at", "console:^round 3 of", first, "--diff", first]
    done = pykvm(*boot, "--snapshot-at", "console:^round 20 of", second)
    assert done.returncode == 0
    assert done.stderr.count("saved to") == 2, done.stderr
    done = pykvm("restore", second, "--diff", "--snapshot-at", "console:^round 60 of", third)
    assert "round 3 of" not in done.stdout
    assert "saved to" in done.stderr
    assert [is_full(folder) for folder in (first, second, third)] == [True, False, False]
    shown = pykvm("snapshot", "show", third, "--verify").stdout
    assert re.search(rf"itself +{third}, differential: \d+ KiB changed", shown)
    assert re.search(rf"stands on +{second}, differential", shown)
    assert re.search(rf"stands on +{first}, full: \d+ KiB on disk", shown)
    assert "1 vCPU, 16 MiB of memory" in shown
    assert pykvm("snapshot", "compact", third).returncode == 0
    shutil.rmtree(first)
    assert "is not there any more" in pykvm("restore", second).stderr
    done = pykvm("restore", third)
    assert done.returncode == 0
    assert "round 60 of" not in done.stdout
    assert done.stdout.endswith("ok: all rounds played\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["boot", "KERNEL", "--diff", "/nowhere"], "--diff: nothing saves to /nowhere before"),
        (["restore", "/nowhere", "--diff"], "/nowhere"),
        (["snapshot", "show", "/nowhere"], "/nowhere"),
        (["snapshot", "compact", "/nowhere"], "/nowhere"),
        (["snapshot"], "show|compact"),
    ],
)
def test_what_cannot_be_done_is_told(words: list[str], complaint: str) -> None:
    kernel = guest_programs.path("snapshot")
    done = pykvm(*(kernel if word == "KERNEL" else word for word in words))
    assert done.returncode == 125
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_left_open(saved: Path, tmp_path: Path) -> None:
    def use() -> None:
        with Machine.restore(saved / "two") as vm:
            vm.run(timeout=TIMEOUT_S)
            vm.snapshot(tmp_path / "snap", base=saved / "two")
            vm.reset()
            vm.fork().close()
        compact(tmp_path / "snap")
        with pytest.raises(ConfigError):
            Machine.restore(tmp_path)

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("memory\n")

    use()
    before = open_files(), mappings()
    for _ in range(5):
        use()
    assert (open_files(), mappings()) == before


def open_files() -> int:
    """Descriptors of those that machines have, other tests' gone."""
    gc.collect()
    links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return sum(bool(re.search("anon_inode|memfd|/dev/|pytest", link)) for link in links)
