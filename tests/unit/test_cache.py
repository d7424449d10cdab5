from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from pykvm import cache
from pykvm.errors import HostError, KvmError


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_cache_directory_is_private_and_made_when_asked_for(tmp_path: Path) -> None:
    assert not (tmp_path / "cache").exists()
    assert cache.cache_dir() == tmp_path / "cache/pykvm"
    assert stat.S_IMODE(cache.cache_dir().stat().st_mode) == 0o700


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_an_empty_or_relative_xdg_cache_home_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache.cache_dir() == tmp_path / "home/.cache/pykvm"


def test_a_cache_that_cannot_be_made_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(HostError, match="set XDG_CACHE_HOME"):
        cache.cache_dir()


def test_atomic_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")
    cache.atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        cache.atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_keeps_others_out() -> None:
    with cache.locked("kernels") as directory:
        other = os.open(directory, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_who_waits_for_a_lock_is_told() -> None:
    with cache.locked("kernels") as directory:
        other = os.open(directory, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    told: list[str] = []

    def note(text: str) -> None:
        told.append(text)
        os.close(other)

    with cache.locked("kernels", note):
        assert told == [f"waiting for another pykvm that is working in {directory}"]


def test_a_lock_goes_with_its_holder() -> None:
    with pytest.raises(KeyError), cache.locked("kernels"):
        raise KeyError
    with cache.locked("kernels") as directory:
        assert directory == cache.cache_dir() / "kernels"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_cache_without_room_is_named(number: int) -> None:
    with (
        pytest.raises(HostError, match=r"cannot write to .*; make room"),
        cache.locked("kernels"),
    ):
        raise OSError(number, os.strerror(number))


def test_an_error_that_is_not_about_room_stays_itself() -> None:
    with pytest.raises(FileNotFoundError), cache.locked("kernels"):
        raise FileNotFoundError(errno.ENOENT, "none")
    with pytest.raises(KvmError), cache.locked("kernels"):
        raise KvmError("KVM_CREATE_VM", errno.ENOSPC)
