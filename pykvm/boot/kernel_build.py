"""A small test kernel, compiled here from Debian's source package or from a tree at hand.

Reached from `pykvm kernel build`. What is built in stands in guests/linux/test.config, which is
merged into the kernel's own tinyconfig. Read `kernels.py` beside it for where the result goes, and
Linux Documentation/kbuild/kconfig.rst for what a fragment is.

The cache then has ``VERSION-pykvm``: the bzImage, its configuration, System.map, and ``vmlinux``,
whose symbols are at the guest's own addresses because KASLR is off.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from pykvm import cache
from pykvm.boot import kernels
from pykvm.boot.release import age_key
from pykvm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pykvm.boot.apt import Apt, Progress
    from pykvm.boot.kernels import Kernel, Note

PACKAGE: Final = "linux-source-"
FRAGMENT: Final = "guests/linux/test.config"
LOG: Final = "kernel-build.log"  # in the cache: all that the last build printed

# What a build runs or includes, and the Debian package that has it.
# Linux Documentation/process/changes.rst "Current Minimal Requirements"; gelf.h is objtool's.
PROGRAMS: Final = {
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "tar": "tar",
    "xz": "xz-utils",
}
HEADERS: Final = {"stdio.h": "libc6-dev", "gelf.h": "libelf-dev"}


def build(
    source: str | None = None,
    config: Path | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> Kernel:
    """Compile a test kernel into the cache; return it. Takes minutes and 2 GB of disk meanwhile.

    `source` is a version that Debian packages ("6.12"), a directory with a kernel tree, or None for
    the newest packaged one. `config` is a fragment that has the last word. `progress` is told of
    bytes downloaded, then of files compiled, whose total is not known: 0. Options that the kernel
    did not take over are noted. Raises `ConfigError` for a bad argument, `HostError` when a program
    or the network is missing, or the build fails.
    """
    import shutil
    import tempfile
    from pathlib import Path

    note = note or (lambda text: None)
    jobs = len(os.sched_getaffinity(0)) if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"--jobs: {jobs} is less than 1")
    fragments = [_fragment(), *([config.absolute()] if config else [])]
    wanted = _options(_text(path) for path in fragments)
    _check_host()
    with cache.locked("build", note) as directory:
        for leftover in directory.iterdir():  # of a build that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=directory) as name:
            work = Path(name)
            tree = _tree(source, work, progress, note)
            make = _Make(tree, work, cache.cache_dir() / LOG)
            note("configuring")
            make.configure(fragments)
            got = _options([_text(make.output / ".config")])
            lost = [f"{key}={value}" for key, value in wanted.items() if got.get(key, "n") != value]
            if lost:
                note(f"this kernel does not take over: {' '.join(lost)}")
            note(f"compiling with {jobs} jobs; the log is {make.log}")
            make(f"-j{jobs}", "bzImage", "vmlinux", progress=progress)
            release = _text(make.output / "include/config/kernel.release").strip()
            boot = work / "root/boot"
            boot.mkdir(parents=True)
            for built, kept in (
                ("arch/x86/boot/bzImage", "vmlinuz"),
                ("vmlinux", "vmlinux"),
                ("System.map", "System.map"),
                (".config", "config"),
            ):
                shutil.copyfile(make.output / built, boot / f"{kept}-{release}")
            with cache.locked(kernels.KERNELS, note):
                return kernels.put(boot.parent, release)


class _Make:
    """make in a kernel tree that stays as it is: what it makes goes to `output`."""

    def __init__(self, tree: Path, work: Path, log: Path) -> None:
        self.tree = tree
        self.output = work / "out"
        self.log = log
        self.log.write_bytes(b"")

    def configure(self, fragments: Iterable[Path]) -> None:
        """Start from tinyconfig, merge `fragments` into it, and let Kconfig settle the rest."""
        self("tinyconfig")
        merge = self.tree / "scripts/kconfig/merge_config.sh"
        config = self.output / ".config"
        self._run(
            (str(merge), "-m", "-Q", "-O", str(self.output), str(config), *map(str, fragments))
        )
        self("olddefconfig")

    def __call__(self, *arguments: str, progress: Progress | None = None) -> None:
        """Run make with `arguments`, calling `progress` for each file compiled."""
        self._run(("make", f"O={self.output}", "ARCH=x86_64", *arguments), progress)

    def _run(self, command: tuple[str, ...], progress: Progress | None = None) -> None:
        import subprocess

        # Without a make that runs pykvm: its flags and job server are not meant for this one.
        env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        env |= {"LC_ALL": "C", "KBUILD_BUILD_USER": "pykvm", "KBUILD_BUILD_HOST": "pykvm"}
        compiled = 0
        with (
            self.log.open("a", buffering=1) as log,
            subprocess.Popen(
                command,
                cwd=self.tree,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    log.write(line)
                    if progress and re.match(r"\s+(CC|AS)\s", line):
                        compiled += 1
                        progress(compiled, 0)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise HostError(
                f"the kernel did not build: {_complaint(_text(self.log))}; see {self.log}"
            )


def _tree(source: str | None, work: Path, progress: Progress | None, note: Note) -> Path:
    """Return a kernel source tree: the directory `source`, or Debian's, unpacked below `work`."""
    from pathlib import Path

    from pykvm.boot.apt import run, unpack

    if source and Path(source).is_dir():
        if not Path(source, "Kconfig").is_file():
            raise ConfigError(f"{source} is not a kernel source tree: it has no Kconfig")
        return Path(source).absolute()
    deb = _package(source, progress, note)
    note(f"unpacking {deb.name}")
    unpack(deb, work / "package")
    (work / "tree").mkdir()
    for archive in (work / "package").glob("usr/src/linux-source-*.tar.*"):
        run(("tar", "-xf", str(archive), "-C", str(work / "tree")))
    for kconfig in (work / "tree").glob("*/Kconfig"):
        return kconfig.parent
    raise HostError(f"{deb} has no kernel source tree, or it could not be unpacked (disk full?)")


def _package(version: str | None, progress: Progress | None, note: Note) -> Path:
    """Return a source package from the cache, downloaded when apt knows of a newer one."""
    from pykvm.boot.apt import with_lists

    with cache.locked("sources", note) as directory:
        package = f"{PACKAGE}{(version or '*').removeprefix(PACKAGE)}"

        def newest(apt: Apt) -> Path:
            return _download(package, directory, apt, progress, note)

        try:
            return with_lists(newest, note)
        except HostError as error:
            cached = sorted(directory.glob(f"{package}_*.deb"), key=lambda deb: age_key(deb.name))
            if not cached:
                raise
            note(f"{error}; taking {cached[-1].name} from the cache")
            return cached[-1]


def _download(
    package: str, directory: Path, apt: Apt, progress: Progress | None, note: Note
) -> Path:
    import fnmatch
    import tempfile
    from pathlib import Path

    packaged = [name for name in apt.names(PACKAGE) if re.fullmatch(r".*-\d+\.\d+", name)]
    names = sorted(fnmatch.filter(packaged, package), key=age_key)
    if not names:
        have = ", ".join(name.removeprefix(PACKAGE) for name in sorted(packaged, key=age_key))
        raise ConfigError(
            f"there is no package {package}; the versions packaged are {have or 'none'}"
        )
    kept = directory / f"{names[-1]}_{apt.field(names[-1], 'Version')}.deb"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=directory) as name:
            note(f"downloading {names[-1]}")
            deb = apt.download(names[-1], Path(name), progress)
            for old in directory.glob(f"{names[-1]}_*.deb"):
                old.unlink()
            deb.rename(kept)
    return kept


def _fragment() -> Path:
    """Return the path of pykvm's fragment: in the source tree, or installed with the package."""
    from pathlib import Path

    package = Path(__file__).parent.parent
    for root in (package.parent, package):
        if (path := root / FRAGMENT).is_file():
            return path
    raise HostError(f"{FRAGMENT} is missing from this installation of pykvm: install it again")


def _options(texts: Iterable[str]) -> dict[str, str]:
    """Parse .config files, later ones over earlier ones: "n" for what is not set."""
    options = {}
    for text in texts:
        for line in text.splitlines():
            if found := re.fullmatch(r"(CONFIG_\w+)=(.*)|# (CONFIG_\w+) is not set", line.strip()):
                options[found[1] or found[3]] = found[2] or "n"
    return options


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _complaint(log: str) -> str:
    """Return the line of a build's log that says why it failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = (line for line in lines if re.search(r"\berror\b|\*\*\*", line, re.IGNORECASE))
    return next(errors, lines[-1] if lines else "it printed nothing")


def _check_host() -> None:
    """Raise `HostError` with the line that installs what is missing here."""
    import shutil
    import subprocess

    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    for header, package in HEADERS.items():
        probe = ("gcc", "-E", "-o", os.devnull, "-include", header, "-x", "c", os.devnull)
        if "gcc" in missing or subprocess.run(probe, capture_output=True, check=False).returncode:
            missing.append(package)
    if missing:
        raise HostError(f"building a kernel needs more here: apt-get install {' '.join(missing)}")
