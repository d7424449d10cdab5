"""Judges exercises: builds what the learner wrote, runs it, and says what is missing.

Reached from `cli_lesson` (``--check``), the lessons' `exercises.py` and the tests. An exercise is
either a guest program or the host side in Python; its check is given the file.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pykvm import Machine, MachineConfig, Outcome
from pykvm.errors import ConfigError
from pykvm.lessons import Lesson, guests_folder

TIME_LIMIT_S = 20.0


class NotSolvedError(Exception):
    """The solution does not do what the exercise asks for; the message says what is missing."""


class Exercise(NamedTuple):
    """What is asked for in a sentence, the file to begin with, the solution, and the check."""

    task: str
    start: str  # in the lesson's folder
    solution: tuple[tuple[str, str], ...]  # texts in it, and what replaces them
    check: Callable[[Path], None]

    def solved(self, folder: Path) -> str:
        """The file to begin with, in `folder`, with the solution in it."""
        text = (folder / self.start).read_text(encoding="utf-8")
        for old, new in self.solution:
            if text.count(old) != 1:
                raise ValueError(f"{self.start} has {old!r} {text.count(old)} times, not once")
            text = text.replace(old, new)
        return text


def exercises(lesson: Lesson) -> tuple[Exercise, ...]:
    """The exercises of `lesson`, as its `exercises.py` lists them."""
    found: tuple[Exercise, ...] = load(lesson.path / "exercises.py").EXERCISES
    return found


def load(path: Path) -> ModuleType:
    """A Python file as a module. Raises `ConfigError` when it cannot be read."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"--check: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def demand(holds: object, text: str) -> None:
    """Raise `NotSolvedError` with `text` unless `holds`."""
    if not holds:
        raise NotSolvedError(text)


@contextmanager
def guest(source: Path, lesson: str, **config: Any) -> Iterator[Machine]:
    """A machine with `source` as the guest, compiled as the lesson's own; `config` is
    `MachineConfig`'s. Raises `NotSolvedError` when it does not compile."""
    with tempfile.TemporaryDirectory(prefix="pykvm-lesson-") as folder:
        program = Path(folder) / "guest"
        _compile(source, program, lesson)
        with Machine(MachineConfig(kernel=program.read_bytes(), **config)) as vm:
            yield vm


def run(vm: Machine) -> Outcome:
    """Run a guest to its end, or for `TIME_LIMIT_S` seconds."""
    return vm.run(timeout=TIME_LIMIT_S)


def symbol(vm: Machine, name: str) -> int:
    """The address of `name` in the guest, an ELF file. Raises `NotSolvedError` without it."""
    from pykvm.debug import symbols

    kernel = vm.config.kernel
    assert isinstance(kernel, bytes)
    try:
        return symbols.of_elf(kernel)[name]
    except KeyError:
        raise NotSolvedError(f"the program has no {name} any more") from None


def _compile(source: Path, program: Path, lesson: str) -> None:
    """Compile `source`, in C or assembler, to `program`, with the start-up code of the lesson."""
    build = _build()
    sources = [source]
    if source.suffix == ".c":
        sources.append(guests_folder() / lesson / "start.S")
    format = build.GUESTS[lesson]
    try:
        build.compile_program(program, sources, build.FORMATS[format])
    except SystemExit as error:
        raise NotSolvedError(str(error)) from None


@functools.cache
def _build() -> ModuleType:
    """guests/build.py: a file of the build, not a module of the package."""
    return load(guests_folder() / "build.py")
