"""A snapshot and what it was taken on, down to a full one: found, checked, opened.

Reached from `load`, `diff`, `compact` and `show`. A differential snapshot names its base by where
it was, by its random id and by its checksum, so that no other can take its place. Read `format` for
the fields, `layers` for what becomes of the files.
"""

from __future__ import annotations

import contextlib
import os
import zlib

from pykvm._core import lib
from pykvm.boot.files import stamp
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.memory import Region
from pykvm.snapshot import format, pages
from pykvm.snapshot.layers import Layer, Stack, without

if TYPE_CHECKING:
    from typing import Any, Final

# File systems of statfs(2) where to read a hole through a mapping takes a page, of which there may
# be none: then the kernel gives the guest other bytes, and ends a process. An overlayfs may have a
# tmpfs beneath.
FILLING_HOLES: Final = {0x0102_1994: "tmpfs", 0x794C_7630: "overlayfs"}

LONGEST: Final = 128  # snapshots in a chain: each is two files to open, and its pages to look up
NONSENSE: Final = (LookupError, TypeError, ValueError, AttributeError, ImportError)  # in a head


class Link(Record):
    """One snapshot of a chain."""

    folder: str
    head: dict[str, Any]

    @property
    def is_full(self) -> bool:
        return "base" not in self.head

    def is_known_by(self, checksum: str) -> bool:
        """Whether it has this checksum, or had it before it was compacted."""
        return checksum in (self.head["checksum"], *self.head.get("compacted", ()))

    @property
    def size(self) -> int:
        """Bytes of the guest's memory. Raises one of `NONSENSE`."""
        return int(self.head["memory"]["size"])

    @property
    def ranges(self) -> list[Region]:
        """Of a differential one: the pages that it has. Raises one of `NONSENSE`."""
        found, end = [], 0
        for offset, size, _ in self.head["memory"]["pages"]:
            if offset % pages.PAGE or size % pages.PAGE or offset < end or size <= 0:
                raise ValueError(f"pages [{offset}, {size}]")
            end = offset + size
            found.append(Region(offset, size))
        if end > self.size:
            raise ValueError("pages beyond the memory")
        return found


def read_head(folder: str) -> dict[str, Any]:
    """The head of the snapshot in `folder`, checked. Raises `ConfigError`."""
    path = os.path.join(folder, format.HEAD)
    try:
        with open(path, "rb") as file:
            data = file.read(format.HEAD_MAX)
    except OSError as error:
        raise ConfigError(
            f"snapshot {folder}: {error.strerror}; name a folder that 'pykvm boot --snapshot' made"
        ) from None
    return format.decode_head(data, folder)


# ── bases ────────────────────────────────────────────────────────────────────────────────────────


def reference(base: Link, folder: str) -> dict[str, str]:
    """What the head of a snapshot in `folder` says of its base. It is found by the way from one to
    the other, so that both may be moved together, or where it was."""
    where = os.path.realpath(base.folder)
    return {
        "id": base.head["id"],
        "checksum": base.head["checksum"],
        "relative": os.path.relpath(where, os.path.realpath(folder)),
        "path": where,
    }


def follow(folder: str | os.PathLike[str]) -> list[Link]:
    """The chain of the snapshot in `folder`: itself, its base, and so on. Raises `ConfigError`."""
    folder = os.path.abspath(folder)
    chain = [Link(folder, read_head(folder))]
    try:
        while not chain[-1].is_full:
            chain.append(_base_of(chain[-1], folder))
            if chain[-1].size != chain[0].size:
                raise ValueError("the memory of its base has another size")
            if any(link.head["id"] == chain[-1].head["id"] for link in chain[:-1]):
                raise ConfigError(
                    f"snapshot {folder}: its bases lead back to {chain[-1].folder}, which is one "
                    "of them: there is no full snapshot to begin with; take it anew"
                )
            if len(chain) > LONGEST:
                raise ConfigError(
                    f"snapshot {folder}: it stands on more than {LONGEST - 1} others; 'pykvm "
                    "snapshot compact' one of them first"
                )
    except NONSENSE as error:
        raise format.damaged(chain[-1].folder, f"{format.HEAD}: {error!r}") from None
    return chain


def _base_of(link: Link, folder: str) -> Link:
    base = link.head["base"]
    nearby = os.path.normpath(os.path.join(os.path.realpath(link.folder), base["relative"]))
    places = dict.fromkeys((nearby, base["path"]))
    there = [place for place in places if os.path.exists(os.path.join(place, format.HEAD))]
    if not there:
        raise ConfigError(
            f"snapshot {folder}: its base {base['path']} is not there any more; put it back"
        )
    found = [Link(place, read_head(place)) for place in there]
    same = [other for other in found if other.head["id"] == base["id"]]
    if not same:
        raise ConfigError(
            f"snapshot {folder}: what is in {there[0]} is another snapshot than the base that it "
            f"was taken on (its id is {base['id']}); put that one back"
        )
    for other in same:
        if other.is_known_by(base["checksum"]):
            return other
    raise ConfigError(
        f"snapshot {folder}: its base {same[0].folder} has changed since; put back what was there"
    )


# ── memory ───────────────────────────────────────────────────────────────────────────────────────


def open_stack(chain: list[Link], *, verify: bool = False, lazy: bool = False) -> Stack:
    """The memory of a chain, checked: where a file is not the one that was written, or with
    `verify`, all of it. With `lazy`, whoever reads the full one checks it. Raises `ConfigError`."""
    with contextlib.ExitStack() as opened:
        layers = []
        for link in reversed(chain):
            try:
                unchecked = lazy and link.is_full
                fd = _open(link, verify, unchecked)
                opened.callback(os.close, fd)
                ranges = [] if link.is_full else link.ranges
            except NONSENSE as error:
                raise format.damaged(link.folder, f"{format.HEAD}: {error!r}") from None
            if not unchecked and lib.pk_file_system(fd) in FILLING_HOLES:
                data = list(pages.joined(pages.data_of(fd, link.size)))
                if link.is_full:  # only its data are mapped, over a file of zeros
                    zeros = os.memfd_create("zeros", os.MFD_CLOEXEC)
                    opened.callback(os.close, zeros)
                    os.truncate(zeros, link.size)
                    layers.append(Layer(zeros, []))
                    ranges = data
                layers.append(Layer(fd, ranges, is_mapped=not list(without(ranges, data))))
            else:
                layers.append(Layer(fd, ranges))
        opened.pop_all()
    return Stack(layers[0].fd, chain[0].size, layers[1:])


def _open(link: Link, verify: bool, unchecked: bool) -> int:
    entry = link.head["memory"]
    return open_whole(
        link.folder, format.MEMORY, entry, link.size, verify=verify, unchecked=unchecked
    )


def open_whole(
    folder: str,
    name: str,
    entry: dict[str, Any],
    size: int,
    *,
    verify: bool = False,
    unchecked: bool = False,
) -> int:
    """A file of a snapshot, checked against what `entry` of the head says of it: `unchecked`, only
    its size. Raises `ConfigError`, and one of `NONSENSE` for the head's."""
    try:
        fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise format.damaged(folder, f"{name}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if status.st_size != size:
            raise format.damaged(folder, f"{name} has {status.st_size} bytes")
        if verify or (not unchecked and stamp(status) != entry["stamp"]):
            wrong = _find_damage(fd, entry, size)
            if wrong is not None:
                what = f"{name} from {wrong:#x} on does not match its checksum"
                raise format.damaged(folder, what)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _find_damage(fd: int, entry: dict[str, Any], size: int) -> int | None:
    """Where a file is not what its checksums say. What lies between a differential snapshot's pages
    is never looked at."""
    if "pages" in entry:
        damaged = (at for at, length, crc in entry["pages"] if checksum_of(fd, at, length) != crc)
        return next(damaged, None)
    wanted = {int(number): crc for number, crc in entry["crc32"].items()}
    found = pages.checksums(fd, size)
    return next(
        (
            number * pages.PIECE
            for number in sorted(wanted.keys() | found.keys())
            if wanted.get(number) != found.get(number)
        ),
        None,
    )


def checksum_of(fd: int, offset: int, size: int) -> int:
    """CRC-32 of a range of a file."""
    crc = 0
    for at in range(offset, offset + size, pages.PIECE):
        crc = zlib.crc32(os.pread(fd, min(pages.PIECE, offset + size - at), at), crc)
    return crc
