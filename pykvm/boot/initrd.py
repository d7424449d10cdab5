"""Packs an initrd: a cpio archive in memory, from pykvm's init and the files a guest is to see.

Reached from `machine` (the default initrd, `--add`) and `cli` (several ``--initrd``). The other
end is guests/init/init.c, which reads what `build` leaves under /pykvm. The format is "newc":
Linux Documentation/driver-api/early-userspace/buffer-format.rst, initramfs buffer format.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence

from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Final

MAGIC: Final = b"070701"  # newc, without checksums
HEADER_SIZE: Final = 110  # the magic and 13 numbers of 8 hexadecimal digits
TRAILER: Final = "TRAILER!!!"  # the name of the entry that ends an archive
MAX_FILE_SIZE: Final = 0xFFFF_FFFF

ARGV: Final = "pykvm/argv"  # where init looks for its command
ARGV_WORDS: Final = 4096  # as many as guests/init/init.c has room for,
ARGV_SIZE: Final = 128 * 1024 - 1  # and bytes

# Device nodes the kernel or init wants before devtmpfs is mounted: (major, minor), permissions.
# Linux Documentation/admin-guide/devices.txt
NODES: Final = {
    "dev/console": ((5, 1), 0o600),
    "dev/null": ((1, 3), 0o666),
}


def build(
    init: bytes,
    files: Mapping[str, bytes | os.PathLike[str]] | None = None,
    argv: Sequence[str] = (),
) -> bytes:
    """An uncompressed archive with `init` as /init, `files`, and `argv` as the command to run.

    A file's key is its path in the guest; its value is the contents (stored executable) or a path
    on the host: a file, directory or symbolic link is stored as such, with its permissions.
    Directories above a file are made. Raises `BootError` for files that cannot be read or stored.
    """
    contents: dict[str, bytes | os.PathLike[str]] = {"init": init}
    for path, value in (files or {}).items():
        contents[_inside(path)] = value
    if argv:
        contents[ARGV] = command = b"".join(os.fsencode(word) + b"\0" for word in argv)
        if len(argv) > ARGV_WORDS or len(command) > ARGV_SIZE:
            raise BootError(
                f"COMMAND: {len(argv)} words of {len(command)} bytes are more than init takes "
                f"({ARGV_WORDS}, {ARGV_SIZE}); put them in a script and --add it"
            )

    archive = _Archive()
    for path, ((major, minor), mode) in NODES.items():
        archive.add(path, stat.S_IFCHR | mode, rdev=(major, minor))
    for path, value in contents.items():
        if isinstance(value, bytes):
            archive.add(path, stat.S_IFREG | 0o755, value)
        else:
            archive.add(path, *_host_file(value))
    return archive.finish()


def host_files(spec: str) -> dict[str, Path]:
    """What ``--add HOSTPATH[:GUESTPATH]`` names, as `files` for `build`.

    A directory brings everything below it, a program the libraries it needs. GUESTPATH is HOSTPATH
    when it is left out. The named path's own symbolic links are followed, so that /bin/sh adds a
    shell; those below are kept.
    """
    from pathlib import Path

    host, _, guest = spec.partition(":")
    guest = guest or str(Path(host).absolute())
    top = Path(host)
    if not top.exists():
        raise BootError(f"--add {spec}: {host} does not exist")
    top = top.resolve()
    files = {guest: top}
    if top.is_dir():
        files |= {f"{guest}/{path.relative_to(top)}": path for path in sorted(top.rglob("*"))}
        return files
    if not top.is_file():
        raise BootError(f"--add {spec}: {host} is neither a file nor a folder; copy it to a file")
    return _libraries(top) | files


def _libraries(program: Path) -> dict[str, Path]:
    """The interpreter and the shared libraries of a dynamic program, as ldd(1) finds them here."""
    from pathlib import Path
    from subprocess import run

    with open(program, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return {}
    told = run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    found: dict[str, Path] = {}
    for line in told.splitlines():  # "\tNAME => PATH (ADDRESS)", or "\tPATH (ADDRESS)"
        name, _, path = line.partition("=>") if "=>" in line else ("", "", line)
        path = path.split("(")[0].strip()
        if path == "not found":
            raise BootError(f"--add {program}: its library {name.strip()} is not on this host")
        if path.startswith("/"):
            found[path] = Path(path).resolve()
    return found


def concatenate(files: Iterable[bytes | memoryview]) -> bytes:
    """Join initrds, compressed or not, into one that the kernel unpacks in this order.

    Each starts at a multiple of 4 bytes, after zeros, where the kernel looks for the next one.
    """
    joined = bytearray()
    for data in files:
        joined += b"\0" * (-len(joined) % 4)
        joined += data
    return bytes(joined)


def _inside(path: str) -> str:
    """The name of guest path `path` in an archive: relative to the root, and below it."""
    name = os.path.normpath(path).lstrip("/")
    if name in ("", ".", "..") or name.startswith("../") or "\0" in name:
        raise BootError(f"{path!r} is not a path for a file in the guest")
    return name


def _host_file(path: os.PathLike[str]) -> tuple[int, bytes]:
    """Mode and contents of a host file; a symbolic link's contents are its target."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return mode, os.fsencode(os.readlink(path))
        if stat.S_ISDIR(mode):
            return mode, b""
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                return mode, file.read()
    except OSError as error:
        raise BootError(f"{os.fspath(path)}: {error.strerror}; cannot add it") from error
    raise BootError(f"{os.fspath(path)}: neither file, directory nor symbolic link; cannot add it")


class _Archive:
    """A cpio archive being written. Entries are in order: a directory before what is in it."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._names: set[str] = {""}

    def add(self, name: str, mode: int, data: bytes = b"", rdev: tuple[int, int] = (0, 0)) -> None:
        """Append one entry and, before it, the directories above it that are not there yet."""
        if name in self._names:
            return
        parent = name.rpartition("/")[0]
        if parent not in self._names:
            self.add(parent, stat.S_IFDIR | 0o755)
        self._names.add(name)
        self._append(name, mode, data, rdev)

    def finish(self) -> bytes:
        """End the archive and return it."""
        self._append(TRAILER, 0, b"", (0, 0))
        return bytes(self._bytes)

    def _append(self, name: str, mode: int, data: bytes, rdev: tuple[int, int]) -> None:
        if len(data) > MAX_FILE_SIZE:
            raise BootError(f"/{name}: {len(data)} bytes are too many for a file in an initrd")
        encoded = os.fsencode(name) + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = (
            len(self._names),  # inode: distinct, so that nothing looks like a hard link
            mode,
            0,  # user
            0,  # group
            links,
            0,  # modification time: equal input makes equal archives
            len(data),
            0,  # device the file was on: major, minor
            0,
            *rdev,
            len(encoded),
            0,  # checksum, unused in newc
        )
        out = self._bytes
        out += MAGIC + b"%08x" * 13 % numbers + encoded
        out += b"\0" * (-len(out) % 4)
        out += data
        out += b"\0" * (-len(out) % 4)
