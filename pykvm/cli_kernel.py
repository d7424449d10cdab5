"""`pykvm kernel`: fetch a kernel, build one, list those there are; symbols and headers of one.

Reached from `cli`. All but ls print a path on standard output and all else on standard error, so
``pykvm boot "$(pykvm kernel fetch 6.1)"`` works. Read `boot.kernels` for the search order and the
patterns, `debug.symbolfile` for the file that symbols makes, `boot.headers` for what headers has.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace, _SubParsersAction

    from tqdm import tqdm

    from pykvm.boot.kernels import Kernel

DESCRIPTION = "Without a KERNEL `pykvm boot` takes: $PYKVM_KERNEL, the running kernel if it may be \
read (/boot/vmlinuz-$(uname -r)), the newest one in the cache."

PATTERN = (
    "which kernel: VERSION, FLAVOUR or VERSION-FLAVOUR (6.1, cloud, 6.12-cloud, 6.1-generic), \
a release (6.1.0-55-amd64) or a package (linux-image-amd64); default: the newest cloud kernel"
)


def add_parser(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Add the parser of `pykvm kernel` and its commands."""
    parser = subparsers.add_parser(
        "kernel",
        help="fetch, build and list kernels; their symbols for gdb, headers for modules",
        description=DESCRIPTION,
    )
    commands = parser.add_subparsers(metavar="fetch|build|symbols|headers|ls", required=True)

    fetch = commands.add_parser(
        "fetch",
        help="download one of Debian's kernels into the cache",
        description="Download the newest kernel that matches PATTERN from the host's own apt "
        "sources, unless the cache has it. Needs no root. Prints the path of the kernel.",
    )
    fetch.add_argument("pattern", metavar="PATTERN", nargs="?", help=PATTERN)
    fetch.add_argument("--update", action="store_true", help="fetch new package lists first")
    fetch.set_defaults(func=_fetch)

    build = commands.add_parser(
        "build",
        help="compile a small test kernel into the cache",
        description="Compile a small kernel with virtio, ext4 and a serial console built in, from "
        "Debian's linux-source package. Takes minutes. Prints the path of the kernel; vmlinux, "
        "with symbols, is beside it.",
    )
    build.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="a packaged version (6.12) or a directory with a kernel tree; default: the newest",
    )
    build.add_argument(
        "--config", metavar="FILE", help="options to set beyond and over pykvm's own"
    )
    build.add_argument("--jobs", "-j", type=int, metavar="N", help="default: one per host CPU")
    build.set_defaults(func=_build)

    symbols = commands.add_parser(
        "symbols",
        help="write a file with a kernel's symbols, for gdb",
        description="Print the path of an ELF file with KERNEL's symbols: the vmlinux beside it if "
        "that has them, else one made of the names that a Linux kernel carries of itself "
        '(kallsyms). As in: gdb "$(pykvm kernel symbols 6.12)" -ex "target remote :1234".',
    )
    _add_kernel(symbols)
    symbols.add_argument(
        "--output", "-o", metavar="FILE", help="where to write it (default: pykvm's cache)"
    )
    symbols.set_defaults(func=_symbols)

    headers = commands.add_parser(
        "headers",
        help="download what a kernel's modules are compiled against",
        description="Download the headers of KERNEL, one of Debian's, into the cache, unless they "
        "are installed or there. Needs no root. Prints the path of the folder for make: "
        'make -C "$(pykvm kernel headers 6.12)" M="$PWD" modules.',
    )
    _add_kernel(headers)
    headers.set_defaults(func=_headers)

    ls = commands.add_parser("ls", help="list the kernels there are, newest first")
    ls.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    ls.set_defaults(func=_list)


def _add_kernel(parser: ArgumentParser) -> None:
    parser.add_argument(
        "kernel", metavar="KERNEL", nargs="?", help="what 'pykvm boot' takes; default: its default"
    )


def find_or_fetch(name: str | None = None) -> str:
    """Return the path of the kernel to boot: `find()`'s, else the newest cloud kernel, fetched.

    Raises `ConfigError` when `name` or $PYKVM_KERNEL means none, `HostError` when fetching fails.
    """
    from pykvm.boot.kernels import fetch, find
    from pykvm.errors import HostError

    try:
        return str(find(name).image)
    except HostError:
        with Report() as report:
            report.note("there is no kernel here yet: fetching Debian's")
            return str(fetch(None, report.progress, report.note).image)


def _kernel(args: Namespace) -> Kernel:
    """The kernel that an argument of `_add_kernel` means."""
    from pathlib import Path

    from pykvm.boot.kernels import kernel_at

    return kernel_at(Path(find_or_fetch(args.kernel)))


def _fetch(args: Namespace) -> int:
    from pykvm.boot.kernels import fetch

    with Report() as report:
        kernel = fetch(args.pattern, report.progress, report.note, update=args.update)
    print(kernel.image)
    return 0


def _build(args: Namespace) -> int:
    from pathlib import Path

    from pykvm.boot.kernel_build import build

    config = Path(args.config) if args.config else None
    with Report() as report:
        kernel = build(args.source, config, args.jobs, report.progress, report.note)
    print(kernel.image)
    return 0


def _symbols(args: Namespace) -> int:
    from pathlib import Path

    from pykvm.debug import symbolfile

    output = Path(args.output) if args.output else None
    print(symbolfile.write(_kernel(args), output))
    return 0


def _headers(args: Namespace) -> int:
    from pykvm.boot.headers import headers

    kernel = _kernel(args)
    with Report() as report:
        folder = headers(kernel, report.progress, report.note)
    print(folder)
    return 0


def _list(args: Namespace) -> int:
    rows = _rows()
    if args.json:
        import json

        print(json.dumps(rows, indent=2))
    elif not rows:
        print("no kernels: `pykvm kernel fetch` downloads one", file=sys.stderr)
    else:
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            mark, modules = "*" if row["default"] else " ", "modules" if row["modules"] else ""
            size = f"{row['size'] / 1e6:5.1f} MB"
            print(f"{mark} {row['name']:{width}}  {size}  {modules:7}  {row['image']}")
        print("* is what `pykvm boot` takes by itself", file=sys.stderr)
    return 0


def _rows() -> list[dict[str, Any]]:
    """Describe the kernels in the cache, and before them the default if it is not one of these."""
    from pykvm.boot.kernels import find, installed
    from pykvm.errors import PykvmError

    listed = installed()
    try:
        default = find()
    except PykvmError as error:
        default = None
        if listed:  # so PYKVM_KERNEL is wrong
            print(f"pykvm: {error}", file=sys.stderr)
    if default and default not in listed:
        listed.insert(0, default)
    return [
        {
            "name": kernel.name,
            "image": str(kernel.image),
            "size": kernel.image.stat().st_size,
            "modules": str(kernel.modules) if kernel.modules else None,
            "config": str(kernel.config) if kernel.config else None,
            "vmlinux": str(kernel.vmlinux) if kernel.vmlinux else None,
            "default": kernel == default,
        }
        for kernel in listed
    ]


class Report:
    """Tells on standard error how a fetch or a build comes along: a bar if that is a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()

    def note(self, text: str) -> None:
        """Say what begins now."""
        self._end_bar()
        print(f"pykvm: {text}", file=sys.stderr, flush=True)

    def progress(self, done: int, total: int) -> None:
        """Move the bar: bytes of `total`, or files when there is no total."""
        if self._bar is None:
            if not sys.stderr.isatty():
                return
            from shutil import get_terminal_size

            from tqdm import tqdm

            unit = {"unit": "B", "unit_scale": True} if total else {"unit": " files"}
            # tqdm draws nothing on a pseudo-terminal that was given no size.
            columns, lines = get_terminal_size()
            self._bar = tqdm(
                total=total or None, file=sys.stderr, ncols=columns, nrows=lines, **unit
            )
        self._bar.update(done - self._bar.n)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
