"""Which kernel to boot: the one asked for, the host's own, or one fetched from Debian.

Reached from the command line (`pykvm boot`, `pykvm kernel`) and from `lab`. Read `release.py` for
how a pattern is matched, `apt.py` for how a package is downloaded, and `kernel_build.py` for
compiling a kernel instead.

The search order of `find()`::

    KERNEL, --kernel KERNEL      a file, or a pattern that a kernel in the cache matches
    $PYKVM_KERNEL                the same
    /boot/vmlinuz-$(uname -r)    the kernel this host runs, when it may be read
    the cache                    the newest one there: `pykvm kernel fetch` puts it there

A pattern is ``[VERSION][-][FLAVOUR]`` of a release as `uname -r` prints it, or a package's name::

    6.1                          newest 6.1.x; without a flavour the cloud kernel is meant
    6.12-cloud, cloud            newest cloud kernel (of 6.12); FLAVOUR may leave out its "-amd64"
    6.1-generic, 6.1-amd64       newest 6.1.x for PCs, a flavour that Debian calls "amd64"
    6.1.0-55-amd64               exactly that release
    linux-image-amd64            exactly that package; a metapackage means what it depends on

A version matches whole numbers from the left (6.1 is not 6.12). Debug, unsigned and real-time
kernels are flavours of their own ("rt", "cloud-amd64-unsigned"): nothing else finds them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pykvm import cache
from pykvm.boot.release import DEFAULT_FLAVOUR, age_key, is_complete, matches
from pykvm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pykvm.boot.apt import Apt, Progress

    Note = Callable[[str], None]  # told in a few words what begins now, or what went wrong

BOOT: Final = "/boot"  # where distributions install kernels
MODULES: Final = ("lib/modules", "usr/lib/modules")  # in a package; newer ones have the second
PACKAGE: Final = "linux-image-"
KERNELS: Final = "kernels"  # the directory in the cache
UNPACKING: Final = ".unpacking-"  # what a tree there is called until it is whole


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel on this host's disk."""

    name: str  # its release, as `uname -r` prints it there; the file's name when that is not known
    image: Path
    modules: Path | None = None  # …/lib/modules/RELEASE
    config: Path | None = None  # what it was configured with

    @property
    def vmlinux(self) -> Path | None:
        """The ELF with symbols beside the image, if any: `pykvm kernel build` keeps it."""
        elf = self.image.with_name(f"vmlinux-{self.name}")
        return elf if elf.is_file() else None


def kernels_dir() -> Path:
    """Name the directory of kernels in the cache: one small root file system per release."""
    return cache.cache_path() / KERNELS


def find(name: str | None = None) -> Kernel:
    """Return the kernel to boot, by the search order at the top of this module.

    Nothing is downloaded. Raises `ConfigError` when `name` or $PYKVM_KERNEL is neither a file nor a
    kernel in the cache, `HostError` when nothing was named and nothing was found.
    """
    from pathlib import Path

    for option, value in (("KERNEL", name), ("PYKVM_KERNEL", os.environ.get("PYKVM_KERNEL"))):
        if value:
            return _named(option, value)
    running = Path(BOOT, f"vmlinuz-{os.uname().release}")
    if os.access(running, os.R_OK):
        return kernel_at(running)
    for newest in installed():
        return newest
    raise HostError(
        "no kernel to boot: run `pykvm kernel fetch` to download one, or name one: "
        "pykvm boot FILE, or PYKVM_KERNEL=FILE"
    )


def installed() -> list[Kernel]:
    """List the kernels in the cache, newest first."""
    # A name that starts with a dot is not whole yet.
    kernels = map(kernel_at, kernels_dir().glob("[!.]*/boot/vmlinuz-*"))
    return sorted(kernels, key=lambda kernel: age_key(kernel.name), reverse=True)


def kernel_at(image: Path) -> Kernel:
    """Describe the kernel in the file `image`, with the modules and configuration found near it."""
    image = image.absolute()
    release = image.name.removeprefix("vmlinuz-")
    near = (image.parent.parent / where / release for where in MODULES)
    config = image.with_name(f"config-{release}")
    return Kernel(
        name=release,
        image=image,
        modules=next((tree for tree in near if tree.is_dir()), None) or modules_dir(release),
        config=config if config.is_file() else None,
    )


def modules_dir(release: str) -> Path | None:
    """Return the module tree of `release`, in the cache or of this host; None without one.

    A tree from the cache has no modules.dep: that is made when a package is installed.
    """
    from pathlib import Path

    for root in (kernels_dir() / release, Path("/")):
        for where in MODULES:
            if (tree := root / where / release).is_dir():
                return tree
    return None


def fetch(
    pattern: str | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
    *,
    update: bool = False,
) -> Kernel:
    """Return the newest Debian kernel that matches `pattern`, downloaded unless it is in the cache.

    Newest by the package lists the host has. The network is used when they name a kernel that the
    cache lacks, or when neither they nor the cache have one that matches; `update` gets new lists
    first. When apt or the network fails, a matching kernel in the cache is the answer. Without one
    raises `HostError`, and `ConfigError` when there is no such kernel.
    """
    from pykvm.boot.apt import with_lists

    note = note or (lambda text: None)
    pattern = pattern or DEFAULT_FLAVOUR
    with cache.locked(KERNELS, note):
        cached = [kernel for kernel in installed() if matches(_release(pattern), kernel.name)]
        if cached and cached[0].name == _release(pattern):
            return cached[0]

        def newest(apt: Apt) -> Kernel:
            return _newest(pattern, cached, apt, progress, note)

        try:
            with cache.writing():
                return with_lists(newest, note, update=update)
        except HostError as error:
            if not cached:
                raise
            note(f"{error}; taking {cached[0].name} from the cache")
            return cached[0]


def _newest(
    pattern: str, cached: list[Kernel], apt: Apt, progress: Progress | None, note: Note
) -> Kernel:
    """Return the newest kernel by the lists that `apt` has, from `cached` or downloaded."""
    exact = pattern.startswith(PACKAGE)
    package = _resolve(pattern, apt) if exact else _best(pattern, apt)
    if not package:
        if cached and not exact:
            return cached[0]
        raise ConfigError(
            f"no kernel package matches {pattern!r}; the newest are {_newest_names(apt)}"
        )
    release = _release(package)
    for kernel in cached:
        if kernel.name == release or (not exact and age_key(kernel.name) > age_key(release)):
            return kernel
    return _install(package, apt, progress, note)


def _best(pattern: str, apt: Apt) -> str | None:
    """Return the name of the newest package that matches `pattern`."""
    names = [name for name in apt.names(PACKAGE) if is_complete(_release(name))]
    names = [name for name in names if matches(pattern, _release(name))]
    return max(names, key=lambda name: age_key(_release(name)), default=None)


def _resolve(package: str | None, apt: Apt) -> str | None:
    """Return the package that holds a kernel: `package`, or what it depends on as a metapackage."""
    if package not in apt.names(PACKAGE):
        return None
    while package and not is_complete(_release(package)):
        inner = (name for name in apt.dependencies(package) if name.startswith(PACKAGE))
        package = next(inner, None)
    return package


def _install(package: str, apt: Apt, progress: Progress | None, note: Note) -> Kernel:
    """Download `package` and unpack it into the cache, whole or not at all. The lock is held."""
    import shutil
    import tempfile
    from pathlib import Path

    from pykvm.boot.apt import unpack

    for leftover in kernels_dir().glob(f"{UNPACKING}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=UNPACKING, dir=kernels_dir()) as name:
        note(f"downloading {package}")
        deb = apt.download(package, Path(name), progress)
        note(f"unpacking {deb.name}")
        unpack(deb, root := Path(name, "root"))
        images = list(root.glob("boot/vmlinuz-*"))
        if len(images) != 1:
            raise ConfigError(f"{package} has no kernel in /boot: name another package")
        return put(root, images[0].name.removeprefix("vmlinuz-"))


def put(root: Path, release: str) -> Kernel:
    """Make `root`, a tree on the cache's file system, the cache's `release`. The lock is held.

    The kernel is decompressed for boots to come, those in the lab among them, which have no cache
    that lasts.
    """
    from pykvm.boot import vmlinux
    from pykvm.boot.files import open_image

    home = kernels_dir() / release
    if home.exists():
        home.rename(root.with_name("replaced"))
    root.rename(home)
    kernel = kernel_at(home / "boot" / f"vmlinuz-{release}")
    vmlinux.warm(open_image(kernel.image))
    return kernel


def _named(option: str, value: str) -> Kernel:
    """Return the kernel that `option` names: a file first, then the newest match in the cache."""
    from pathlib import Path

    path = Path(value)
    if path.exists() and not path.is_dir():
        return kernel_at(path)
    if "/" in value:
        wrong = "is a directory; name the kernel in it" if path.is_dir() else "is not there"
        raise ConfigError(f"{option}: {value} {wrong}")
    kernels = installed()
    for kernel in kernels:
        if matches(_release(value), kernel.name):
            return kernel
    have = ", ".join(kernel.name for kernel in kernels) or "none"
    raise ConfigError(
        f"{option}: {value} is neither a file nor a kernel in the cache (there: {have}); "
        f"try `pykvm kernel fetch {value}`"
    )


def _release(package: str) -> str:
    return package.removeprefix(PACKAGE)


def _newest_names(apt: Apt) -> str:
    """Name the newest cloud kernel and the newest PC kernel of each version that `apt` knows."""
    newest = {}
    for release in sorted(map(_release, apt.names(PACKAGE)), key=age_key):
        for flavour in ("cloud", "generic"):
            if is_complete(release) and matches(flavour, release):
                newest[*release.split(".")[:2], flavour] = release
    return ", ".join(newest.values()) or "none"
