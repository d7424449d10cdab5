"""The default initrd: whether a guest's memory has room for it."""

from __future__ import annotations

import pytest

from pykvm.boot.guestimage import check_room
from pykvm.errors import ConfigError
from pykvm.layout import MIB


def test_an_archive_that_three_times_over_fits_is_let_through() -> None:
    check_room(bytes(20 * MIB), 64 * MIB, "")


def test_an_archive_too_large_for_its_tmpfs_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"^--add: 30 MiB .* --memory 64M.* try --memory 192M"):
        check_room(bytes(30 * MIB), 64 * MIB, "console=ttyS0")


@pytest.mark.parametrize("cmdline", ["root=/dev/vda", "quiet rootfstype=ramfs"])
def test_files_that_go_to_a_ramfs_may_take_all_memory(cmdline: str) -> None:
    check_room(bytes(30 * MIB), 64 * MIB, cmdline)
    with pytest.raises(ConfigError, match="--add: 33 MiB"):
        check_room(bytes(33 * MIB), 64 * MIB, cmdline)
