"""The cpio packer: read back field by field here, and by cpio(1) where it is installed."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import guest_programs
from pykvm.boot import initrd
from pykvm.errors import BootError


class Member(NamedTuple):
    mode: int
    links: int
    rdev: tuple[int, int]
    data: bytes


def unpack(archive: bytes, at: int = 0) -> tuple[dict[str, Member], int]:
    """The members of the archive at `at`, and where it ends; as the kernel's initramfs.c reads."""
    members: dict[str, Member] = {}
    while True:
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        _, mode, _, _, links, _, size, _, _, major, minor, name_size, check = fields
        assert check == 0
        start = at + 110
        assert archive[start + name_size - 1] == 0
        name = archive[start : start + name_size - 1].decode()
        data = (start + name_size + 3) & ~3
        at = (data + size + 3) & ~3
        if name == "TRAILER!!!":
            return members, at
        assert name not in members
        members[name] = Member(mode, links, (major, minor), archive[data : data + size])


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BootError, match=r"--add .*: .*/pipe is neither a file nor a folder"):
        initrd.host_files(f"{tmp_path}/pipe:/x")


def test_init_is_executable_and_first_directories_come_before_their_files() -> None:
    members, end = unpack(archive := initrd.build(b"INIT", {"/a/b/c": b"x"}))
    assert end == len(archive)
    assert stat.S_ISREG(members["init"].mode)
    assert members["init"].mode & 0o111 == 0o111
    assert members["init"].data == b"INIT"
    names = list(members)
    assert names.index("a") < names.index("a/b") < names.index("a/b/c")
    assert stat.S_ISDIR(members["a/b"].mode)


def test_console_and_null_are_character_devices() -> None:
    members, _ = unpack(initrd.build(b""))
    assert stat.S_ISCHR(members["dev/console"].mode)
    assert members["dev/console"].rdev == (5, 1)
    assert members["dev/null"].rdev == (1, 3)


def test_argv_keeps_spaces_quotes_and_empty_words() -> None:
    members, _ = unpack(initrd.build(b"", argv=["sh", "-c", 'echo "a  b"', ""]))
    assert members["pykvm/argv"].data == b'sh\0-c\0echo "a  b"\0\0'


@pytest.mark.parametrize("argv", [["x"] * 4097, ["x" * (128 << 10)]], ids=["words", "bytes"])
def test_command_that_init_has_no_room_for_is_refused(argv: list[str]) -> None:
    with pytest.raises(BootError, match="COMMAND"):
        initrd.build(b"", argv=argv)


def test_no_command_leaves_no_argv_file() -> None:
    assert "pykvm/argv" not in unpack(initrd.build(b""))[0]


def test_equal_input_makes_equal_archives(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x")
    assert initrd.build(b"i", {"f": file}) == initrd.build(b"i", {"f": file})


def test_host_file_keeps_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"x")
    file.chmod(0o640)
    members, _ = unpack(initrd.build(b"", {"/etc/secret": file}))
    assert members["etc/secret"].mode == stat.S_IFREG | 0o640


def test_added_directory_brings_files_empty_directories_and_links(tmp_path: Path) -> None:
    (tmp_path / "d" / "empty").mkdir(parents=True)
    (tmp_path / "d" / "file").write_bytes(b"x")
    (tmp_path / "d" / "link").symlink_to("file")
    members, _ = unpack(initrd.build(b"", initrd.host_files(f"{tmp_path}/d:/opt")))
    assert stat.S_ISDIR(members["opt/empty"].mode)
    assert members["opt/file"].data == b"x"
    assert stat.S_ISLNK(members["opt/link"].mode)
    assert members["opt/link"].data == b"file"


def test_added_file_is_followed_and_keeps_the_name_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "dash").write_bytes(b"shell")
    (tmp_path / "sh").symlink_to("dash")
    files = initrd.host_files(f"{tmp_path}/sh")
    members, _ = unpack(initrd.build(b"", files))
    assert members[f"{tmp_path}/sh".lstrip("/")].data == b"shell"


def test_missing_file_is_refused_by_its_option(tmp_path: Path) -> None:
    with pytest.raises(BootError, match=r"--add .*does not exist"):
        initrd.host_files(f"{tmp_path}/none")


def test_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BootError, match=r"gone: No such file"):
        initrd.build(b"", {"x": tmp_path / "gone"})


def test_device_on_the_host_is_refused() -> None:
    with pytest.raises(BootError, match="/dev/null"):
        initrd.build(b"", {"x": Path("/dev/null")})


@pytest.mark.parametrize("path", ["", "/", "..", "../x", "/..", "a/../..", "a\0b"])
def test_path_outside_the_root_is_refused(path: str) -> None:
    with pytest.raises(BootError, match="not a path"):
        initrd.build(b"", {path: b""})


def test_concatenated_archives_each_start_aligned() -> None:
    parts = [b"\x1f\x8bcompressed!", initrd.build(b"a"), b"x" * 5, initrd.build(b"b")]
    joined = initrd.concatenate(parts)
    first, _ = unpack(joined, 16)
    assert first["init"].data == b"a"
    second, end = unpack(joined, 16 + len(parts[1]) + 8)
    assert second["init"].data == b"b"
    assert end == len(joined)


@given(st.lists(st.binary(max_size=9)))
def test_concatenation_adds_only_zeros_between(parts: list[bytes]) -> None:
    joined = initrd.concatenate(parts)
    at = 0
    for part in parts:
        start = (at + 3) & ~3
        assert not any(joined[at:start])
        assert joined[start : start + len(part)] == part
        at = start + len(part)
    assert at == len(joined)


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(NAMES.map("files/".__add__), st.binary(max_size=20), max_size=5))
def test_every_file_that_no_directory_shadows_comes_back(files: dict[str, bytes]) -> None:
    files = {
        name: data
        for name, data in files.items()
        if not any(other.startswith(name + "/") for other in files)
    }
    members, end = unpack(archive := initrd.build(b"", files))
    assert end == len(archive)
    assert {n: m.data for n, m in members.items() if n in files} == files


@pytest.mark.skipif(not shutil.which("cpio"), reason="cpio is not installed")
def test_cpio_lists_the_archive_without_complaint() -> None:
    archive = initrd.build(b"init", {"/bin/tool": b"t"}, ["tool"])
    result = subprocess.run(["cpio", "-itv"], input=archive, capture_output=True, check=True)
    assert b"bin/tool" in result.stdout
    assert b"5,   1" in result.stdout
    assert b"blocks" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_program_brings_its_interpreter_and_libraries() -> None:
    added = initrd.host_files("/bin/sh")
    assert "/bin/sh" in added
    assert any("ld-linux" in path for path in added)
    assert any("libc.so" in path for path in added)


def test_a_static_program_brings_nothing_else() -> None:
    assert set(initrd.host_files(f"{guest_programs.path('init')}:/init2")) == {"/init2"}
