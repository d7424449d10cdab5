"""Debian packages through the host's own apt, without root: which there are, and fetching one.

Reached from `boot.kernels` and `boot.kernel_build`. apt checks what it downloads against the signed
package lists; nothing is ever installed. Read `boot/kernels.py` beside it for what is done with a
package, and apt-get(8), apt-cache(8), apt.conf(5) for the programs.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from pykvm import cache
from pykvm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from subprocess import CompletedProcess
    from typing import TypeVar

    T = TypeVar("T")
    Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

# Without dpkg's status, apt names only what can be downloaded, not what is merely installed. Its
# index of all packages is kept here too: the system's, if any, is made with that status. Root's apt
# downloads as user _apt, who may not enter our cache: it would warn, then do without that user.
CONF = """\
Dir::State::status "/dev/null";
Dir::Cache "{root}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
APT::Sandbox::User "root";
"""

# Package lists of pykvm's own. #clear drops the hooks that distributions attach to `apt-get
# update`: they serve the system's lists, and want root.
PRIVATE_CONF = """\
Dir::State "{root}/state";
Dir::State::lists "lists";
Acquire::GzipIndexes "true";
Acquire::Languages "none";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


class Apt:
    """apt with the system's package lists, or (`private`) with lists of pykvm's own in its cache.

    Both read the sources the administrator configured. Private lists serve where `apt-get update`
    never ran (containers), or ran too long ago, a user who is not root.
    """

    def __init__(self, *, private: bool = False) -> None:
        root = cache.cache_dir() / "apt" / ("private" if private else "system")
        for name in ("state/lists/partial", "cache/archives/partial"):
            (root / name).mkdir(parents=True, exist_ok=True)
        conf = root / "apt.conf"
        text = CONF + PRIVATE_CONF if private else CONF
        cache.atomic_write(conf, text.format(root=root).encode())
        self._options = ("-qq", "-c", str(conf))

    def update(self) -> str:
        """Fetch the package lists anew; return what apt complained of, on one line, or "".

        Not an error by itself: one dead source among several matters only to who misses a package.
        """
        return _reason(run(("apt-get", *self._options, "update")).stderr)

    def names(self, prefix: str) -> list[str]:
        """Name the packages that start with `prefix`; none where there are no package lists."""
        return run(("apt-cache", *self._options, "pkgnames", prefix)).stdout.split()

    def dependencies(self, package: str) -> list[str]:
        """Name what `package` depends on, in its own order; the first of each set of choices."""
        return [
            dependency.split()[0]
            for dependency in self.field(package, "Depends").split(",")
            if dependency
        ]

    def download(self, package: str, directory: Path, progress: Progress | None = None) -> Path:
        """Download `package` into `directory`, empty before; return the path of the .deb.

        `progress` is called on this thread, about twice a second. Raises `HostError` with apt's
        reason: mostly no network, or lists so old that the server dropped what they name.
        """
        import subprocess
        import tempfile

        size = int(self.field(package, "Size") or 0)
        report, report_end = os.pipe()
        command = ("apt-get", *self._options, "-o", f"APT::Status-Fd={report_end}")
        with os.fdopen(report) as lines, tempfile.TemporaryFile("w+") as complaint:
            try:
                process = subprocess.Popen(
                    (*command, "download", package),
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaint,
                    pass_fds=(report_end,),
                )
            finally:
                os.close(report_end)
            try:
                for line in lines:
                    # apt, README.progress-reporting: "dlstatus:" item ":" percent ":" description
                    if progress and line.startswith("dlstatus:"):
                        progress(int(size * float(line.split(":")[2]) / 100), size)
            except BaseException:
                process.terminate()
                raise
            finally:
                process.wait()
            complaint.seek(0)
            debs = list(directory.glob("*.deb"))
            if process.returncode or len(debs) != 1:
                raise HostError(
                    f"cannot download {package}: {_reason(complaint.read())}; "
                    "check the network, the space on the disk and the sources in /etc/apt"
                )
        return debs[0]

    def field(self, package: str, name: str) -> str:
        """Return a control field of the candidate version of `package`, "" when it has none."""
        control = run(("apt-cache", *self._options, "show", "--no-all-versions", package)).stdout
        found = re.search(rf"^{name}: (.+)$", control, re.MULTILINE)
        return found[1] if found else ""


def with_lists(task: Callable[[Apt], T], note: Callable[[str], None], *, update: bool = False) -> T:
    """Return what `task` does with the host's package lists or, when that fails, with new ones.

    The new lists are private ones, for a user who is not root; `update` skips the first try.
    Raises what `task` raises, and `HostError` when there are no lists to be had.
    """
    import shutil

    if not shutil.which("apt-get"):
        raise HostError(
            "apt-get is not here: kernels are fetched as Debian packages. On another system name "
            "a kernel of your own: pykvm boot --kernel FILE, or PYKVM_KERNEL=FILE"
        )
    if not update:
        try:
            return task(Apt())
        except HostError as error:
            note(str(error))
        except ConfigError:
            pass  # these lists may be too old to know what the user wants
    note("updating the package lists")
    apt = Apt(private=True)
    if complaint := apt.update():
        note(complaint)
    if not apt.names("linux-"):
        raise HostError(
            f"apt could not fetch its package lists: {complaint}; "
            "check the network and the sources in /etc/apt"
        )
    return task(apt)


def unpack(deb: Path, directory: Path) -> None:
    """Unpack the files of `deb` below `directory`; its maintainer scripts are not run."""
    done = run(("dpkg-deb", "--extract", str(deb), str(directory)))
    if done.returncode:
        raise HostError(f"cannot unpack {deb.name}: {_reason(done.stderr)}")


def run(command: Sequence[str]) -> CompletedProcess[str]:
    """Run a program to its end, its output captured. Raises `HostError` when it is not there."""
    import subprocess

    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        raise HostError(f"{command[0]} is not here: install Debian's dpkg, apt and tar") from None


def _reason(stderr: str) -> str:
    """Return the first error that apt or dpkg printed, else the first line, else nothing."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return (errors or lines or [""])[0].removeprefix("E:").removeprefix("W:").strip()
