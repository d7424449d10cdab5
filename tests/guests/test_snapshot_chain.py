"""Chains of snapshots: bases that are missing, changed or damaged, and one made of several."""

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
from snapshots import (
    CHAIN_MEMORY,
    CHANGES,
    FILES,
    HOST_WRITES,
    PAGE,
    TIMEOUT_S,
    content,
    flip,
    is_full,
    machine,
    memory_of,
    pages_in,
    passed,
    take_chain,
)

from pykvm.errors import ConfigError
from pykvm.machine import Machine
from pykvm.snapshot import chain, format
from pykvm.snapshot.compact import compact
from pykvm.snapshot.load import load

REFUSAL = "is damaged|its format is version|has changed since|is another snapshot|not there any"
PYKVM = [sys.executable, "-m", "pykvm"]
CHANGED_PAGES = st.floats(HOST_WRITES / CHAIN_MEMORY, (HOST_WRITES + 64 * PAGE) / CHAIN_MEMORY)
PAGE_CHANGES = st.builds(flip, CHANGED_PAGES, st.binary(min_size=1, max_size=64))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return take_chain(tmp_path_factory.mktemp("taken"))


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "saved")
    return tmp_path / "saved"


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
    [[[1, PAGE, 0]], [[0, PAGE, 0], [0, PAGE, 0]], [[0, 2 * CHAIN_MEMORY, 0]], [[0, "x", 0]], 7],
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


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["full", "one", "two"]), st.sampled_from(FILES), CHANGES | PAGE_CHANGES)
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
        assert memory_of(copied / "three") == vm.memory.read(0, CHAIN_MEMORY)
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
import sys
from pykvm.machine import Machine
from pykvm.snapshot.compact import compact
from dying import die_at_step

folder, what, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
if what == "compact":
    die_at_step(step)
    compact(folder + "/two")
else:
    with Machine.restore(folder + "/one") as vm:
        die_at_step(step)
        vm.snapshot(folder + "/two", base=folder + "/one")
"""


@pytest.mark.parametrize("what", ["compact", "snapshot"])
def test_killed_at_any_step_leaves_one_whole_snapshot(copied: Path, what: str) -> None:
    before = content(copied / "two")
    seen = set()
    for step in range(1, 60):
        command = [sys.executable, "-c", KILLED, str(copied), what, str(step)]
        code = subprocess.run(
            command, check=False, timeout=60, cwd=Path(__file__).parent
        ).returncode
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
