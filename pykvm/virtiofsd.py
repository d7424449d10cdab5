"""virtiofsd: where it is, which of the two it is, and how it is told what to share.

Reached from `virtio.fs`, which shares a folder with a guest, and from `lab.machine`, which shares
the host with the lab. There are two: the older, in C, came with QEMU up to 7.2 (Debian 12); the
newer, in Rust, is a package of its own and has other options.
"""

from __future__ import annotations

import os

from pykvm.errors import HostError
from pykvm.lean import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from typing import Final

PLACES: Final = (  # where distributions put it, which is seldom in PATH
    "virtiofsd",
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
)
PACKAGES: Final = "virtiofsd (Debian 12: qemu-system-common)"


class Virtiofsd(Record):
    """A virtiofsd of this host's."""

    path: str
    in_rust: bool

    def command(
        self, listen_fd: int, folder: str, cache: str = "auto", *, submounts: bool = True
    ) -> list[str]:
        """The command that shares `folder` with the one who connects to `listen_fd`.

        `cache` is how long the guest may keep what it has seen: always, auto (a second) or none.
        Without `submounts` the guest is not told where other file systems begin.
        """
        from resource import RLIMIT_NOFILE, getrlimit

        # A sandbox without namespaces: a container may have none to give.
        sandbox = "chroot" if os.geteuid() == 0 else "none"
        command = [self.path, f"--fd={listen_fd}"]
        command += [f"--rlimit-nofile={getrlimit(RLIMIT_NOFILE)[1]}"]
        if self.in_rust:
            cache = "never" if cache == "none" else cache
            command += [f"--shared-dir={folder}", f"--cache={cache}", "--log-level=error"]
            command += [f"--sandbox={sandbox}"]
            return command if submounts else [*command, "--no-announce-submounts"]
        # A comma in an option's value is written with a backslash, and so is that (libfuse).
        folder = folder.replace("\\", "\\\\").replace(",", "\\,")
        options = f"source={folder},cache={cache},sandbox={sandbox},log_level=err"
        return [*command, "-f", "-o", options + (",announce_submounts" if submounts else "")]


def read_only(command: list[str], folder: str) -> list[str]:
    """`command`, to be run where `folder` cannot be written: neither virtiofsd has had an option
    for that always. What is mounted below `folder` is not seen there."""
    own = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-current-user", "--mount"]
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    return ["unshare", *own, "--", "sh", "-c", script, folder, *command]


def find() -> Virtiofsd | None:
    """The virtiofsd of this host's, or None. Raises `HostError` when this user cannot use it."""
    import shutil
    import subprocess

    path = next(filter(None, map(shutil.which, PLACES)), None)
    if path is None:
        return None
    usage = subprocess.run([path, "--help"], capture_output=True, check=False).stdout
    found = Virtiofsd(path, b"--shared-dir" in usage)
    if os.geteuid() != 0 and not found.in_rust:
        # Not in a user namespace either: it opens with O_NOATIME, which only a file's owner may.
        raise HostError(f"{path} works for root only: use sudo, or install a newer virtiofsd")
    return found
