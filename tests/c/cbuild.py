"""Builds csrc/ without Python's build system: for the programs of this folder, with sanitizers.

Reached from test_c.py, from fuzz.py (``make fuzz``) and from tests that load csrc/ with a sanitizer
into Python.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = sorted(path for path in CSRC.glob("*.c") if path.name != "_core.c")  # cffi's, not ours
PROGRAMS = sorted([*HERE.glob("test_*.c"), *HERE.glob("fuzz_*.c")])
FUZZERS = sorted(HERE.glob("fuzz_*.c"))

WARNINGS = (
    *("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes"),
    "-Werror",
)
SANITIZERS = {
    "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    # gcc's says that it does not know fences; acquire and release order what ours do, too.
    "threads": ("-fsanitize=thread", "-Wno-tsan"),
}


def compile_c(compiler: str, *arguments: str) -> None:
    """Run a compiler with every warning an error. Fails with what it said."""
    command = [compiler, "-g", *WARNINGS, f"-I{CSRC}", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def build_library(folder: Path, compiler: str, *flags: str) -> Path:
    """csrc/ as a static library: a program may put a function of its own in a file's place."""
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    for source, target in zip(SOURCES, objects, strict=True):
        compile_c(compiler, "-O1", *flags, "-c", str(source), "-o", str(target))
    archive = folder / "libcsrc.a"
    subprocess.run(["ar", "rcs", str(archive), *map(str, objects)], check=True)
    return archive


def build_program(archive: Path, source: Path, compiler: str, *flags: str) -> Path:
    """A program of this folder, beside the library."""
    target = archive.with_name(source.stem)
    compile_c(*(compiler, "-O1", *flags, str(source), str(archive), "-pthread"), "-o", str(target))
    return target


def build_core(folder: Path) -> Path:
    """The extension `pykvm._core` with gcc's memory sanitizers; see sanitized_core.py."""
    sys.path.insert(0, str(CSRC))
    from build_ffi import ffi

    code, target = folder / "_core.c", folder / "_core.so"
    ffi.emit_c_code(str(code))
    subprocess.run(
        [
            *("gcc", "-shared", "-fPIC", "-std=c11", "-g", "-O1", *SANITIZERS["memory"]),
            *(f"-I{CSRC}", f"-I{sysconfig.get_path('include')}", str(code), *map(str, SOURCES)),
            *("-pthread", "-o", str(target)),
        ],
        check=True,
    )
    return target
