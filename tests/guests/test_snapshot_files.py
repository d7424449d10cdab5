"""A snapshot's files: damaged in any way, half written, on a full disk, of another host or disk."""

from __future__ import annotations

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
from snapshots import CHANGES, FILES, content

from pykvm import guest_programs
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError, HostError
from pykvm.kvm import pack_cpuid, unpack_cpuid
from pykvm.machine import Machine
from pykvm.snapshot import chain, format
from pykvm.snapshot.load import load
from pykvm.virtio.config.disk import DiskConfig

MEMORY = 4 << 20
REFUSAL = "is damaged|its format is version"
PYKVM = [sys.executable, "-m", "pykvm"]


def machine(**options: object) -> Machine:
    kernel = guest_programs.path("snapshot")
    return Machine(MachineConfig(kernel=kernel, memory=MEMORY, cmdline="rounds=2", **options))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "snap"
    with machine() as vm:
        vm.snapshot(folder)
    return folder


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FILES), CHANGES)
def test_damaged_snapshot_is_refused_or_the_same(
    saved: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "snap"
        shutil.copytree(saved, copy)
        (copy / name).chmod(0o600)
        (copy / name).write_bytes(change((saved / name).read_bytes()))
        try:
            found: object = content(copy)
        except ConfigError as error:
            found = str(error)
        assert found == content(saved) or re.search(REFUSAL, str(found))


@settings(max_examples=60, deadline=None)
@given(CHANGES, st.booleans())
def test_memory_that_is_damaged_is_lost_or_the_same_when_it_is_read_lazily(
    saved: Path, change: Callable[[bytes], bytes], late: bool
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "snap"
        shutil.copytree(saved, copy)
        memory = copy / format.MEMORY
        memory.chmod(0o600)
        damaged = change(memory.read_bytes())
        if not late:
            memory.write_bytes(damaged)
        try:
            with load(copy, lazy=True) as template, template.memory() as lazy:
                if late:
                    memory.write_bytes(damaged)
                found: object = lazy.read(0, lazy.size)
        except (ConfigError, HostError) as error:
            found = str(error)
        refused = f"{REFUSAL}|does not match its checksum|has become shorter"
        assert found == content(saved)[-1] or re.search(refused, str(found))


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "snap"
    shutil.copytree(saved, copy)
    (copy / name).unlink()
    with pytest.raises(ConfigError, match="snapshot"):
        load(copy)


def test_memory_written_to_where_it_lies_is_noticed(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "snap"
    with Machine.restore(saved) as vm:
        vm.snapshot(copy)
    load(copy).close()
    with open(copy / format.MEMORY, "r+b") as file:
        file.seek(0x10_0000)
        byte = file.read(1)
        file.seek(0x10_0000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ConfigError, match="memory from 0x100000"):
        load(copy)


def rewritten(saved: Path, copy: Path, **fields: object) -> Path:
    """A copy whose head says something else, with a checksum that is right."""
    shutil.copytree(saved, copy)
    head = json.loads((copy / format.HEAD).read_text())
    head.update(fields)
    head["checksum"] = format.checksum(head)
    (copy / format.HEAD).write_text(json.dumps(head))
    return copy


def test_other_version_is_refused_by_its_number(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="version 99"):
        load(rewritten(saved, tmp_path / "snap", version=99))


def test_what_a_later_pykvm_may_have_added_is_refused_by_its_name(
    saved: Path, tmp_path: Path
) -> None:
    config = chain.read_head(str(saved))["config"]
    for change in ({"encryption": "aes"}, {"config": {**config, "numa": 2}}):
        with pytest.raises(ConfigError, match=r"does not know \((encryption|numa)\)"):
            load(rewritten(saved, tmp_path / f"{len(change)}{next(iter(change))}", **change))


@pytest.mark.parametrize("field", ["config", "entry", "state", "memory", "generation", "disks"])
def test_head_with_nonsense_in_it_is_refused(saved: Path, tmp_path: Path, field: str) -> None:
    with pytest.raises(ConfigError, match="damaged"):
        load(rewritten(saved, tmp_path / "snap", **{field: {"a": "os.system"}}))


def test_guest_that_was_promised_a_feature_of_another_processor_is_refused(saved: Path) -> None:
    with load(saved) as template:
        promised = [
            row._replace(ebx=row.ebx | 1 << 14) if row[:2] == (7, 0) else row
            for row in unpack_cpuid(template.cpuid[0])
        ]
        template.parts["vcpu0/cpuid"] = pack_cpuid(promised)
        with pytest.raises(ConfigError, match="mpx"):
            template.machine()


def test_snapshot_with_a_disk_that_changed_is_refused(tmp_path: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "snap"
    disk.write_bytes(bytes(1 << 16))
    with machine(disks=(DiskConfig(str(disk)),)) as vm:
        vm.snapshot(folder)
    load(folder).close()
    shutil.copy(disk, tmp_path / "copy")
    disk.write_bytes(b"x" * (1 << 16))
    with pytest.raises(ConfigError, match="has changed since"):
        load(folder)
    load(folder, disks=(DiskConfig(str(tmp_path / "copy")),)).close()
    disk.unlink()
    with pytest.raises(ConfigError, match="--disk"):
        load(folder)


def test_snapshot_replaces_a_snapshot_and_nothing_else(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with Machine.restore(saved) as vm:
        for _ in range(2):
            vm.snapshot(tmp_path / "snap")
        with pytest.raises(ConfigError, match="other things"):
            vm.snapshot(tmp_path / "other")
        with pytest.raises(ConfigError, match="no folder"):
            vm.snapshot(tmp_path / "nowhere" / "snap")
    assert sorted(os.listdir(tmp_path)) == ["other", "snap"]


KILLED = """
import sys
from pykvm.machine import Machine
from dying import die_at_step

with Machine.restore(sys.argv[1]) as vm:
    die_at_step(int(sys.argv[2]), "write")
    vm.snapshot(sys.argv[1])
"""


def test_killed_at_any_step_leaves_one_whole_snapshot(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "snap"
    with Machine.restore(saved) as vm:
        vm.snapshot(folder)
    generations = set()
    for step in range(1, 40):
        command = [sys.executable, "-c", KILLED, str(folder), str(step)]
        code = subprocess.run(
            command, check=False, timeout=60, cwd=Path(__file__).parent
        ).returncode
        with load(folder) as template:
            generations.add(template.generation)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    else:
        pytest.fail("the script never came to its end")
    assert generations >= {1, 2}  # the old one and the new one
    with Machine.restore(saved) as vm:
        vm.snapshot(folder)
    assert os.listdir(tmp_path) == ["snap"]  # what the killed left behind is gone


def test_full_disk_is_told_and_the_guest_goes_on() -> None:
    boot = [*PYKVM, "boot", guest_programs.path("snapshot"), "-m", "16M", "--snapshot", "$D/snap"]
    boot += ["--append", "'rounds=3 ask=1 touch=600'"]
    script = "D=$(mktemp -d) && mount -t tmpfs -o size=1M none $D && " + " ".join(boot)
    script += "; code=$?; ls -A $D; umount $D; rmdir $D; exit $code"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "Operation not permitted" in done.stderr or "/dev/kvm" in done.stderr:
        pytest.skip("no user namespaces here, or no /dev/kvm in them")
    assert "No space left on device; nothing was saved, and the guest goes on" in done.stderr
    assert "round 3 of" in done.stdout
    assert done.returncode == 0
    assert done.stdout.endswith("ok: all rounds played\n")  # `ls` found nothing


# In a tmpfs of its own. Python reads all memory, so that a page which cannot be read ends it.
ON_A_FULL_TMPFS = """
import sys
from pathlib import Path
from pykvm.machine import Machine
from snapshots import HOST_WRITES, PAGE, TIMEOUT_S, machine, passed

folder, size = Path(sys.argv[1]), 64 << 20
saved = {}
with machine("rounds=3 ask=2 touch=600", memory=size) as vm:
    for name in ("unused", "used", "later"):
        vm.memory.write(HOST_WRITES, bytes(128 * PAGE))
        vm.memory.write(HOST_WRITES + 16 * PAGE, name.encode())
        vm.snapshot(folder / name, base=folder / "used" if name == "later" else None)
        saved[name] = vm.memory.read(0, size)
        vm.memory.write(HOST_WRITES, bytes(range(256)) * 16 * 128)
        if name == "unused":
            vm.run(timeout=TIMEOUT_S)
with open(folder / "filled", "wb", buffering=0) as file:
    try:
        while file.write(bytes(PAGE)):
            pass
    except OSError:
        pass
for name in saved:
    for prefault in (False, True):
        with Machine.restore(folder / name, prefault=prefault) as vm:
            vm.memory.write(0xEF000, saved[name][0xEF000:0xEF010])  # the generation id
            assert vm.memory.read(0, size) == saved[name]
            assert sum(size for _, size in vm.memory.changes()) < 2 << 20, "copied, not mapped"
            assert passed(vm.run(timeout=TIMEOUT_S))
            vm.reset()
            assert passed(vm.run(timeout=TIMEOUT_S))
print("as it was")
"""


def test_a_guest_from_a_full_tmpfs_is_the_one_that_was_saved(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(ON_A_FULL_TMPFS)
    (tmp_path / "full").mkdir()
    script = 'mount -t tmpfs -o size=20M none "$3" && "$1" "$2" "$3"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    command += [sys.executable, str(tmp_path / "script"), str(tmp_path / "full")]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    if "Operation not permitted" in done.stderr or "/dev/kvm" in done.stderr:
        pytest.skip("no user namespaces here, or no /dev/kvm in them")
    assert done.stdout == "as it was\n", done.stderr


@pytest.fixture
def snapshots(tmp_path: Path) -> Path:
    """A folder with two snapshots that the command line made: `asked` and `seen`."""
    boot = [*PYKVM, "boot", guest_programs.path("snapshot"), "--append", "rounds=300 ask=2"]
    boot += ["--snapshot", str(tmp_path / "asked")]
    boot += ["--snapshot-at", "console:^round 4 of", str(tmp_path / "seen")]
    done = subprocess.run(boot, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert done.stderr.count("saved to") == 2
    return tmp_path


@pytest.mark.parametrize(("name", "first"), [("asked", "round 3 of"), ("seen", "round")])
def test_command_line_saves_and_restores(snapshots: Path, name: str, first: str) -> None:
    restore = [*PYKVM, "restore", str(snapshots / name), "--verify", "--prefault", "--clock=step"]
    done = subprocess.run(restore, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert first in done.stdout
    assert "round 2 of" not in done.stdout
    assert done.stdout.endswith("ok: all rounds played\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "DIR"),
        (["/nonexistent"], "--snapshot"),
        (["--clock", "leap", "SNAP"], "--clock"),
        (["--disk", "/dev/null", "SNAP"], "--disk"),
        (["--snapshot-at", "console:(", "there", "SNAP"], "--snapshot-at"),
        (["--snapshot-at", "moon:full", "there", "SNAP"], "--snapshot-at"),
        (["--snapshot", "/nonexistent/deeper", "SNAP"], "snapshot"),
    ],
)
def test_what_cannot_be_restored_is_told(saved: Path, words: list[str], complaint: str) -> None:
    words = [str(saved) if word == "SNAP" else word for word in words]
    command = [*PYKVM, "restore", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 125
    assert complaint in done.stderr
    assert done.stderr.startswith("pykvm: ")
