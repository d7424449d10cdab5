"""The C core without Python: each program of this folder, built with sanitizers, is one test.

csrc/ becomes a static library with every warning an error, so a program may put a function of its
own in a file's place (uart.h does). A new test_*.c or fuzz_*.c is found by itself.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = sorted(path for path in CSRC.glob("*.c") if path.name != "_core.c")  # cffi's, not ours
PROGRAMS = sorted([*HERE.glob("test_*.c"), *HERE.glob("fuzz_*.c")])

COMPILERS = ("gcc", "clang")
WARNINGS = (
    *("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes"),
    "-Werror",
)
SANITIZERS = {
    "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    # gcc's says that it does not know fences; acquire and release order what ours do, too.
    "threads": ("-fsanitize=thread", "-Wno-tsan"),
}
THREADED = (
    "test_serial_threads",
    "test_vcpu",
    "test_virtio_blk",
)  # worth a second build, for data races
SKIPPED = 77  # check.h
TIMEOUT_S = 120

Build = Callable[[str, Path], Path]


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **variables},
        check=False,
    )


def compile_c(compiler: str, *arguments: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    result = run([compiler, "-g", *WARNINGS, f"-I{CSRC}", *arguments])
    assert result.returncode == 0, result.stderr


@functools.cache
def unrandomized() -> tuple[str, ...]:
    """A prefix without address randomization, which old sanitizers do not survive where the kernel
    has much of it (vm.mmap_rnd_bits = 32); containers may forbid it, and seldom need it."""
    prefix = ("setarch", "-R")
    return prefix if run([*prefix, "true"]).returncode == 0 else ()


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """``build(sanitizer, program)``: the path of the executable, made by gcc."""

    @functools.cache
    def library(sanitizer: str) -> Path:
        folder = tmp_path_factory.mktemp(sanitizer)
        objects = [folder / f"{source.stem}.o" for source in SOURCES]
        for source, target in zip(SOURCES, objects, strict=True):
            flags = SANITIZERS[sanitizer]
            compile_c("gcc", "-O1", *flags, "-c", str(source), "-o", str(target))
        archive = folder / "libcsrc.a"
        result = run(["ar", "rcs", str(archive), *map(str, objects)])
        assert result.returncode == 0, result.stderr
        return archive

    def program(sanitizer: str, source: Path) -> Path:
        archive = library(sanitizer)
        target = archive.with_name(source.stem)
        inputs = (str(source), str(archive), "-pthread")
        compile_c("gcc", "-O1", *SANITIZERS[sanitizer], *inputs, "-o", str(target))
        return target

    return program


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("source", [*SOURCES, *PROGRAMS], ids=lambda path: path.name)
def test_c_source_compiles_optimized_without_a_warning(
    compiler: str, source: Path, tmp_path: Path
) -> None:
    # As the package is built: -O2 finds what -O1 does not, -DNDEBUG comes from Python's own flags.
    compile_c(compiler, "-O2", "-DNDEBUG", "-c", str(source), "-o", str(tmp_path / "object"))


VARIANTS = [
    pytest.param(sanitizer, source, id=f"{source.stem}-{sanitizer}")
    for source in PROGRAMS
    for sanitizer in SANITIZERS
    if sanitizer == "memory" or source.stem in THREADED
]


@pytest.mark.parametrize(("sanitizer", "source"), VARIANTS)
def test_c_program_passes(build: Build, sanitizer: str, source: Path) -> None:
    program = build(sanitizer, source)
    result = run(
        [*unrandomized(), str(program)],
        ASAN_OPTIONS="detect_leaks=1:abort_on_error=0",
        UBSAN_OPTIONS="print_stacktrace=1",
        TSAN_OPTIONS="halt_on_error=1",
    )
    if result.returncode == SKIPPED:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
