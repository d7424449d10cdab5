"""Makes a full snapshot of a differential one, which then needs no base.

Reached from ``pykvm snapshot compact``. It is written and put in its place as any other (`save`):
whoever is killed on the way leaves the old one. What was taken on it goes on standing on it: the
new one has the same id, and names the checksum of the old.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError
from pykvm.snapshot import chain, format
from pykvm.snapshot.load import read_state
from pykvm.snapshot.save import Save

if TYPE_CHECKING:
    from pykvm.snapshot.chain import Link


def compact(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> None:
    """Write the snapshot in `folder` to `out`, or to its own place, with all of its memory.

    All that goes into it is compared with its checksums before. Raises `ConfigError` when something
    is damaged or missing, or `out` is not to be replaced, `HostError` when the disk is full.
    """
    links = chain.follow(folder)
    target = os.path.abspath(links[0].folder if out is None else out)
    _check_place(links, target)
    try:
        parts = read_state(*links[0])
    except chain.NONSENSE as error:
        raise format.damaged(links[0].folder, f"{format.HEAD}: {error!r}") from None
    with chain.open_stack(links, verify=True) as whole, Save(target) as save:
        save.flatten(whole, parts, _head_of(links[0]), links[0].folder)
        save.commit()


def _check_place(links: list[Link], target: str) -> None:
    for link in links[1:]:
        if os.path.realpath(link.folder) == os.path.realpath(target):
            raise ConfigError(
                f"snapshot {target}: {links[0].folder} stands on it, and others may; name another "
                f"folder, or none to let the new one take the place of {links[0].folder}"
            )


def _head_of(link: Link) -> dict[str, object]:
    """The fields that stay as they are, and the checksum that it is known by."""
    left_out = ("format", "version", "base", "memory", "state", "checksum")
    head = {name: value for name, value in link.head.items() if name not in left_out}
    if not link.is_full:
        head["compacted"] = [*link.head.get("compacted", ()), link.head["checksum"]]
    return head
