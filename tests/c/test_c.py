"""The C core without Python: each program of this folder, built with sanitizers, is one test.

csrc/ becomes a static library with every warning an error, so a program may put a function of its
own in a file's place (uart.h does). A new test_*.c or fuzz_*.c is found by itself, and so is what
corpus/fuzz_NAME/ holds: inputs that fuzz_NAME.c must survive.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import cbuild
import pytest
from cbuild import FUZZERS, HERE, PROGRAMS, SANITIZERS, SOURCES

COMPILERS = ("gcc", "clang")
THREADED = (
    "test_serial_threads",
    "test_trace",
    "test_vcpu",
    "test_virtio_blk",
    "test_virtio_console",
    "test_virtio_net",
    "test_virtio_vsock",
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
        return cbuild.build_library(folder, "gcc", *SANITIZERS[sanitizer])

    @functools.cache
    def program(sanitizer: str, source: Path) -> Path:
        return cbuild.build_program(library(sanitizer), source, "gcc", *SANITIZERS[sanitizer])

    return program


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("source", [*SOURCES, *PROGRAMS], ids=lambda path: path.name)
def test_c_source_compiles_optimized_without_a_warning(
    compiler: str, source: Path, tmp_path: Path
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    # As the package is built: -O2 finds what -O1 does not, -DNDEBUG comes from Python's own flags.
    target = tmp_path / "object"
    cbuild.compile_c(compiler, "-O2", "-DNDEBUG", "-c", str(source), "-o", str(target))


VARIANTS = [
    pytest.param(sanitizer, source, id=f"{source.stem}-{sanitizer}")
    for source in PROGRAMS
    for sanitizer in SANITIZERS
    if sanitizer == "memory" or source.stem in THREADED
]


def passes(program: Path, *arguments: str) -> None:
    """Run it; skip when it says so."""
    result = run(
        [*unrandomized(), str(program), *arguments],
        ASAN_OPTIONS="detect_leaks=1:abort_on_error=0",
        UBSAN_OPTIONS="print_stacktrace=1",
        TSAN_OPTIONS="halt_on_error=1",
    )
    if result.returncode == SKIPPED:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("sanitizer", "source"), VARIANTS)
def test_c_program_passes(build: Build, sanitizer: str, source: Path) -> None:
    passes(build(sanitizer, source))


@pytest.mark.parametrize("source", FUZZERS, ids=lambda path: path.stem)
def test_what_a_fuzzer_found_is_survived(build: Build, source: Path) -> None:
    corpus = sorted(map(str, (HERE / "corpus" / source.stem).iterdir()))
    assert corpus, "make fuzz fills it"
    passes(build("memory", source), *corpus)
