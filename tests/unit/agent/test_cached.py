"""Guests that are booted once and kept: when a boot is spared, and when it must not be."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pykvm.agent import GuestMachine, cached
from pykvm.cache import locked
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError, HostError

CONFIG = MachineConfig(kernel=b"kernel", initrd=(b"initrd",), cmdline="quiet")
SETUP = ("true",)
TIMEOUT_S = 1.0


class Fake:
    """Stands for a `GuestMachine`, and for its `machine`."""

    def __init__(self, log: Path, what: str) -> None:
        with log.open("a") as file:
            file.write(f"{what}\n")
        self.what, self.boot_seconds, self.machine = what, 7.5, self
        self.refuses: Exception | None = None

    def run(self, command: str, **options: Any) -> None:
        self.what += f" {command}"

    def rest(self) -> None:
        pass

    def snapshot(self, folder: Path) -> None:
        if self.refuses:
            raise self.refuses
        folder.mkdir()
        (folder / "of").write_text(self.what)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was booted and restored, a line for each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log = tmp_path / "log"
    monkeypatch.setattr(GuestMachine, "start", lambda config, timeout: Fake(log, "booted"))
    monkeypatch.setattr(GuestMachine, "restore", lambda folder: Fake(log, "restored"))
    return log


def once(config: MachineConfig = CONFIG, setup: tuple[str, ...] = SETUP) -> tuple[Any, list[str]]:
    notes: list[str] = []
    return cached.boot_once(config, setup, TIMEOUT_S, notes.append), notes


def test_second_machine_is_not_booted(log: Path) -> None:
    first, _ = once()
    second, notes = once()
    assert (first.what, second.what, notes) == ("booted true", "restored", [])
    assert second.boot_seconds == first.boot_seconds  # those of the boot


@pytest.mark.parametrize(
    "change",
    [
        lambda: once(CONFIG._replace(kernel=b"other")),
        lambda: once(CONFIG._replace(initrd=(b"other",))),
        lambda: once(CONFIG._replace(cmdline="verbose")),
        lambda: once(CONFIG._replace(cpus=2)),
        lambda: once(CONFIG._replace(memory=512 << 20)),
        lambda: once(setup=("true", "true")),
    ],
)
def test_whatever_changes_a_boot_makes_another(log: Path, change: Callable[[], object]) -> None:
    once()
    change()
    assert log.read_text().split() == ["booted", "booted"]


@pytest.mark.parametrize("name", ["_processor", "_program"])
def test_another_processor_or_pykvm_makes_another(
    log: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    once()
    monkeypatch.setattr(cached, name, lambda: ["another"])
    once()
    assert log.read_text().split() == ["booted", "booted"]


def test_digest_is_the_same_in_every_process() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(cached.digest, (CONFIG, SETUP)) == cached.digest(CONFIG, SETUP)


def test_snapshot_that_is_refused_is_made_anew(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once()

    def refuse(folder: Path) -> None:
        raise ConfigError(f"{folder.name} is damaged")

    monkeypatch.setattr(GuestMachine, "restore", refuse)
    machine, notes = once()
    assert machine.what == "booted true"
    assert notes == ["booting anew, because snapshot is damaged"]


@pytest.mark.parametrize("error", [HostError("it is full"), ConfigError("a disk was written to")])
def test_guest_that_cannot_be_kept_is_used_all_the_same(
    log: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def start(config: MachineConfig, timeout: float) -> Fake:
        fake = Fake(log, "booted")
        fake.refuses = error
        return fake

    monkeypatch.setattr(GuestMachine, "start", start)
    machine, notes = once()
    assert machine.what == "booted true"
    assert notes == [f"the guest is not kept: {error}"]
    once()
    assert log.read_text().split() == ["booted", "booted"]


def test_without_a_cache_it_is_booted(
    log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    machine, notes = once()
    assert machine.what == "booted true"
    assert "guests cannot be kept" in notes[0]


def test_latest_used_are_kept(log: Path, tmp_path: Path) -> None:
    for number in range(cached.KEPT + 2):
        once(CONFIG._replace(cmdline=str(number)))
        for age, folder in enumerate(sorted(guests(tmp_path), key=lambda f: f.stat().st_mtime)):
            os.utime(folder, (age, age))  # clocks of file systems are coarse
        once(CONFIG._replace(cmdline="0"))
    assert len([f for f in guests(tmp_path) if (f / cached.SNAPSHOT).exists()]) == cached.KEPT
    assert log.read_text().split().count("booted") == cached.KEPT + 2  # 0 was booted once


def test_what_a_killed_process_left_goes_with_the_oldest_unless_it_is_locked(
    log: Path, tmp_path: Path
) -> None:
    once(CONFIG)
    root = guests(tmp_path)[0].parent
    for name in ("killed", "working"):
        (root / name / ".snapshot.1-x").mkdir(parents=True)
        os.utime(root / name, (0, 0))
    for number in range(cached.KEPT):
        with locked(f"{cached.FOLDER}/working"):
            once(CONFIG._replace(cmdline=str(number)))
    assert list((root / "killed").iterdir()) == []
    assert len(list((root / "working").iterdir())) == 1


def guests(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "pykvm" / cached.FOLDER).iterdir())


def test_processes_at_the_same_time_boot_once(log: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=once) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(log.read_text().split()) == ["booted", "restored", "restored", "restored"]
