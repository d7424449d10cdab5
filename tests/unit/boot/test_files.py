"""The user's files: mapped, joined, stamped; or refused by the option's name."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from pykvm.boot import files
from pykvm.errors import BootError

LATER = time.time_ns() + 10**12


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"kernel")
    return path


def test_a_kernel_is_its_bytes_and_its_name(image: Path) -> None:
    opened = files.open_image(image)
    assert (bytes(opened.data), opened.name) == (b"kernel", bytes(image))


def test_bytes_are_an_image_without_a_file() -> None:
    assert files.open_image(b"kernel") == (b"kernel", b"kernel", "")


def test_a_file_that_has_just_changed_has_no_stamp(image: Path) -> None:
    assert files.open_image(image).stamp == ""


def test_a_stamp_stays_until_the_file_changes(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: LATER)
    stamp = files.open_image(image).stamp
    assert stamp
    assert files.open_image(image).stamp == stamp
    image.write_bytes(b"another")
    assert files.open_image(image).stamp not in ("", stamp)


def test_files_of_the_same_bytes_have_stamps_of_their_own(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = image.with_name("other")
    other.write_bytes(image.read_bytes())
    monkeypatch.setattr(time, "time_ns", lambda: LATER)
    assert files.open_image(image).stamp != files.open_image(other).stamp


def test_an_empty_file_is_empty(image: Path) -> None:
    image.write_bytes(b"")
    assert files.open_image(image).data == b""


def test_one_initrd_is_taken_as_it_is_and_several_are_joined_at_4_bytes(image: Path) -> None:
    assert bytes(files.read_initrds([image])) == b"kernel"
    assert bytes(files.read_initrds([image, b"more"])) == b"kernel\0\0more"
    assert files.read_initrds([]) == b""


def test_a_module_is_a_file_with_its_command_line(image: Path) -> None:
    assert files.read_modules([f"{image} one two"]) == ((b"kernel", f"{image} one two".encode()),)


def test_a_file_that_cannot_be_read_is_refused_by_its_option(tmp_path: Path) -> None:
    with pytest.raises(BootError, match=r"KERNEL: .*/none: No such file"):
        files.open_image(tmp_path / "none")
    with pytest.raises(BootError, match=r"--initrd: .*: Is a directory"):
        files.read_initrds([tmp_path])
    with pytest.raises(BootError, match=r"--module: .*/none: No such file"):
        files.read_modules([f"{tmp_path}/none argument"])


def test_what_has_no_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykvm.boot.files.STREAM_MAX", 1 << 20)
    with pytest.raises(BootError, match=r"KERNEL: /dev/zero: more than 1 MiB"):
        files.open_image("/dev/zero")
    with pytest.raises(BootError, match=r"--initrd: /dev/zero: more than 1 MiB"):
        files.read_initrds(["/dev/zero"])


def test_a_pipe_that_nobody_writes_to_is_refused_by_its_option(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BootError, match=r"KERNEL: .*/pipe: nothing came through this pipe"):
        files.open_image(pipe, 0.01)
    with pytest.raises(BootError, match=r"--initrd: .*let --timeout give it longer"):
        files.read_initrds([pipe], 0.01)
    with pytest.raises(BootError, match=r"--module: .*Copy what it gives to a file"):
        files.read_modules([f"{pipe} words"], 0.01)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe, data = tmp_path / "pipe", os.urandom(3 << 20)
    os.mkfifo(pipe)
    (tmp_path / "data").write_bytes(data)
    with subprocess.Popen(f"cat {tmp_path}/data >{pipe}", shell=True):
        assert files.open_image(pipe).data == data


def test_a_pipe_whose_writer_has_gone_already_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"kernel")
    os.close(writer)
    assert files.open_image(f"/dev/fd/{reader}").data == b"kernel"
    os.close(reader)
