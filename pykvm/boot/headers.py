"""What a kernel module is compiled against: Debian's headers package of a kernel, unpacked.

Reached from `pykvm kernel headers`. Read `kernels` beside it for the kernels themselves, and Linux
Documentation/kbuild/modules.rst for how a module is built. ::

    make -C "$(pykvm kernel headers 6.12-cloud)" M="$PWD" modules

The cache then has ``headers/RELEASE``: the files of the headers package, of those that all flavours
share and of the programs that a build runs (linux-kbuild), as one small root file system.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pykvm import cache
from pykvm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.boot.apt import Apt, Progress
    from pykvm.boot.kernels import Kernel, Note

PACKAGE: Final = "linux-headers-"
NEEDED: Final = (PACKAGE, "linux-kbuild-")  # of what the package depends on; not the compiler
HEADERS: Final = "headers"  # the directory in the cache
SOURCES: Final = "usr/src"  # in a package, and its place when it is installed: Makefiles name it
UNPACKING: Final = ".unpacking-"  # what a tree there is called until it is whole


def headers(kernel: Kernel, progress: Progress | None = None, note: Note | None = None) -> Path:
    """The folder for ``make -C``, of `kernel`, downloaded unless it is there.

    Raises `ConfigError` for a kernel that has no such package, `HostError` when apt fails.
    """
    from pathlib import Path

    from pykvm.boot.apt import with_lists

    note = note or (lambda text: None)
    installed = Path("/lib/modules", kernel.name, "build")
    if installed.is_dir():
        return installed
    with cache.locked(HEADERS, note) as directory:
        home = directory / kernel.name
        if not home.is_dir():
            with_lists(lambda apt: _install(kernel.name, home, apt, progress, note), note)
        return _build_folder(home, kernel.name)


def _install(release: str, home: Path, apt: Apt, progress: Progress | None, note: Note) -> None:
    """Download and unpack into `home`, whole or not at all. The lock is held."""
    import shutil
    import tempfile
    from pathlib import Path

    from pykvm.boot.apt import unpack

    for leftover in home.parent.glob(f"{UNPACKING}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=UNPACKING, dir=home.parent) as name:
        root = Path(name, "root")
        for package in _packages(release, apt):
            note(f"downloading {package}")
            into = Path(name, package)
            into.mkdir()
            unpack(apt.download(package, into, progress), root)
        _settle(_build_folder(root, release), root, home)
        root.rename(home)


def _packages(release: str, apt: Apt) -> list[str]:
    package = PACKAGE + release
    if package not in apt.names(package):
        raise ConfigError(
            f"there is no package {package}: Debian has headers of its newest kernels only; "
            "'pykvm kernel fetch' brings the newest, a kernel of your own has its source tree"
        )
    return [package, *(name for name in apt.dependencies(package) if name.startswith(NEEDED))]


def _build_folder(root: Path, release: str) -> Path:
    folder = root / SOURCES / f"{PACKAGE}{release}"
    if not folder.is_dir():
        raise HostError(f"{root} has no {folder.name}: remove it, and it is fetched anew")
    return folder


def _settle(folder: Path, root: Path, home: Path) -> None:
    """Let it name its other half where that will be, instead of where it would be installed."""
    makefile = folder / "Makefile"
    makefile.write_text(makefile.read_text().replace(f"/{SOURCES}/", f"{home / SOURCES}/"))
    # With it, each module would be given BTF, by pahole, which a host need not have.
    (folder / "vmlinux").unlink(missing_ok=True)
