"""cffi: how `pykvm._core` is built from csrc/. Named by setup.py; run by setuptools."""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = sorted(p.name for p in HERE.glob("*.c") if p.name != "_core.c")
HEADERS = sorted(p.name for p in HERE.iterdir() if p.suffix in (".h", ".cdef"))

ffi = FFI()
ffi.cdef((HERE / "uapi.cdef").read_text())
ffi.cdef((HERE / "api.h").read_text())
ffi.set_source(
    "pykvm._core",
    '#include "core.h"',
    # Relative to the project's root, where the build runs: setuptools wants such paths in an sdist.
    sources=[os.path.join("csrc", name) for name in SOURCES],
    include_dirs=["csrc"],
    depends=[os.path.join("csrc", name) for name in HEADERS],
    extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
    libraries=["pthread"],
)
