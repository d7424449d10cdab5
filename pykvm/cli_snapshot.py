"""``pykvm snapshot``: tells what a snapshot is, and makes a full one of a differential one.

Reached from `cli_parser`. Taking one is `cli_boot`'s and the API's. Read `snapshot.show` and
`snapshot.compact`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace, _SubParsersAction


def add_parser(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Add the command to ``pykvm``'s parser."""
    parser = subparsers.add_parser(
        "snapshot",
        help="show and compact snapshots",
        description="Tell what a snapshot is, or free it of those that it stands on. Snapshots are "
        "taken by 'pykvm boot --snapshot DIR', '--snapshot-at' and Ctrl-A s.",
    )
    commands = parser.add_subparsers(metavar="show|compact", required=True)

    show = commands.add_parser(
        "show",
        help="tell what a snapshot is",
        description="Tell of which machine the snapshot in DIR is, from when, how large, and on "
        "which others it stands. Exit code 125 when it could not be restored.",
    )
    show.add_argument("folder", metavar="DIR")
    show.add_argument(
        "--verify", action="store_true", help="read all of the memory and compare its checksums"
    )
    show.set_defaults(func=_show)

    compact = commands.add_parser(
        "compact",
        help="make a full snapshot of a differential one",
        description="Write the snapshot in DIR with all of its memory, so that it needs no other: "
        "to OUT, or to its own place. Those that stand on it still do.",
    )
    compact.add_argument("folder", metavar="DIR")
    compact.add_argument("out", metavar="OUT", nargs="?")
    compact.set_defaults(func=_compact)


def _show(args: Namespace) -> int:
    from pykvm.snapshot.show import describe

    print(describe(args.folder, verify=args.verify))
    return 0


def _compact(args: Namespace) -> int:
    from pykvm.snapshot.compact import compact

    compact(args.folder, args.out)
    return 0
