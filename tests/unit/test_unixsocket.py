"""A listening socket that an option names: whose file it is, and what becomes of it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pykvm.errors import ConfigError
from pykvm.unixsocket import UnixListener


def test_the_file_is_removed_at_the_end(tmp_path: Path) -> None:
    listener = UnixListener(str(tmp_path / "s"), "--thing")
    assert (tmp_path / "s").is_socket()
    listener.close()
    listener.close()
    assert list(tmp_path.iterdir()) == []


def test_a_socket_somebody_listens_at_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    first = UnixListener(path, "--thing")
    with pytest.raises(ConfigError, match=r"--thing: .*in use"):
        UnixListener(path, "--thing")
    assert (tmp_path / "s").is_socket()
    first.close()


def test_a_socket_that_was_left_behind_is_taken_over(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
        left.listen()
    listener = UnixListener(path, "--thing")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    listener.close()


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(ConfigError, match=r"--thing: .*no socket"):
        UnixListener(str(tmp_path / "s"), "--thing")
    assert (tmp_path / "s").read_text() == "mine"


def test_a_file_that_took_its_place_stays(tmp_path: Path) -> None:
    listener = UnixListener(str(tmp_path / "s"), "--thing")
    (tmp_path / "s").unlink()
    (tmp_path / "s").write_text("another's")
    listener.close()
    assert (tmp_path / "s").read_text() == "another's"


@pytest.mark.parametrize("name", ["missing/s", "x" * 200])
def test_a_path_that_cannot_be_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--thing"):
        UnixListener(str(tmp_path / name), "--thing")
