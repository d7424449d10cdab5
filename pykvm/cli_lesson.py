"""``pykvm lesson``: the course on the terminal.

Reached from `cli_parser`. Read `lessons` for what a lesson is.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.errors import ConfigError
from pykvm.lessons import LESSONS, Lesson, find, pages_folder
from pykvm.lessons.page import Block, host_side

if TYPE_CHECKING:
    from pykvm.lessons.exercise import Exercise

PICTURE = re.compile(r"!\[([^]]*)\]\(([^)]+)\)")  # Markdown's
DESCRIPTION = """\
A course in twelve lessons, from a virtual machine in one file to booting Linux. Without LESSON,
they are listed. Each runs on this host's /dev/kvm: press Enter to go on."""


def add_parser(subparsers: Any) -> None:
    """Add ``lesson`` to the commands."""
    parser: ArgumentParser = subparsers.add_parser(
        "lesson", help="learn how a hypervisor works", description=DESCRIPTION
    )
    parser.add_argument("lesson", metavar="LESSON", nargs="?", type=int, help="its number")
    parser.add_argument("--all", action="store_true", help="do not wait; without LESSON: all of it")
    parser.add_argument("--code", action="store_true", help="print the host side, a Python program")
    parser.add_argument("--begin", metavar="FILE", type=Path, help="write what to begin with")
    parser.add_argument("--check", metavar="FILE", type=Path, help="judge FILE, your solution")
    parser.add_argument("--solution", action="store_true", help="print a solution")
    parser.add_argument("--exercise", metavar="N", type=int, default=1, help="which exercise (1)")
    parser.set_defaults(func=run)


def run(args: Namespace) -> int:
    """Carry out ``pykvm lesson``; returns the exit code."""
    if args.lesson is None:
        if args.code or args.begin or args.check or args.solution:
            raise ConfigError("LESSON: which one? Write its number: pykvm lesson 2 --code")
        return _play(LESSONS, wait=False) if args.all else _list()
    lesson = find(args.lesson)
    if args.code:
        print(host_side(lesson.text), end="")
        return 0
    if args.begin or args.check or args.solution:
        return _exercise(lesson, args)
    return _play((lesson,), wait=not args.all and sys.stdin.isatty())


def _list() -> int:
    for lesson in LESSONS:
        print(f"{lesson.number:3}  {lesson.title}")
    print("\npykvm lesson 1 starts the first one.")
    return 0


def _play(lessons: tuple[Lesson, ...], wait: bool) -> int:
    from pykvm.kvm import Kvm
    from pykvm.lessons.play import BrokenPromiseError, play

    Kvm().close()  # without KVM, say what to do before the first page does not work
    for lesson in lessons:
        try:
            play(lesson, _show, _wait if wait else lambda: None)
        except BrokenPromiseError as error:
            print(f"pykvm: {error}", file=sys.stderr)
            return 1
    if len(lessons) == 1:
        _point_onward(lessons[0])
    return 0


def _point_onward(lesson: Lesson) -> None:
    page = pages_folder() / lesson.page
    print(f"\nThis page with its pictures: {page}")
    if lesson.number < len(LESSONS):
        print(f"Next: pykvm lesson {lesson.number + 1}  ({LESSONS[lesson.number].title})")


def _show(block: Block) -> None:
    """A block on the terminal: text as it is, code indented, as a book would have it."""
    if block.kind == "heading":
        print(f"\n── {block.text} ".ljust(78, "─"))
    elif block.kind == "text":
        print(f"\n{PICTURE.sub(_name_picture, block.text)}", end="")
    else:
        print()
        if block.title:
            print(f"    [{block.title}]")
        print("".join(f"    {line}\n" for line in block.text.splitlines()), end="")
    sys.stdout.flush()


def _name_picture(found: re.Match[str]) -> str:
    return f"[picture: {found[1]}\n {(pages_folder() / found[2]).resolve().as_uri()}]"


def _wait() -> None:
    try:
        input("\n[Enter] ")
    except EOFError:
        raise KeyboardInterrupt from None


def _exercise(lesson: Lesson, args: Namespace) -> int:
    from pykvm.lessons.exercise import exercises

    of = exercises(lesson)
    if not 1 <= args.exercise <= len(of):
        raise ConfigError(f"--exercise: lesson {lesson.number} has 1 to {len(of)}")
    exercise = of[args.exercise - 1]
    if args.solution:
        print(exercise.solved(lesson.path), end="")
        return 0
    for option, file in (("--begin", args.begin), ("--check", args.check)):
        kind = Path(exercise.start).suffix
        if file is not None and file.suffix != kind:
            raise ConfigError(f"{option}: {file}: its name must end in {kind}, for the compiler")
    print(exercise.task)
    if args.begin:
        return _begin(lesson.path / exercise.start, args.begin)
    return _check(exercise, args.check)


def _begin(start: Path, file: Path) -> int:
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(start.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--begin: {file}: {error.strerror}; choose another name") from None
    print(f"Change {file}, then give it to --check.")
    return 0


def _check(exercise: Exercise, file: Path) -> int:
    from pykvm.lessons.exercise import NotSolvedError

    if not file.is_file():
        raise ConfigError(f"--check: {file} is not a file; name your solution")
    try:
        exercise.check(file)
    except NotSolvedError as error:
        print(f"Not yet: {error}")
        return 1
    print("Solved.")
    return 0
