"""A pytest plugin: `pykvm._core` is the extension at $PYKVM_CORE, built with sanitizers.

    LD_PRELOAD=$(gcc -print-file-name=libasan.so) PYKVM_CORE=… pytest -p sanitized_core …

Reached from test_sanitized_core.py and from the soak tests; `cbuild.build_core` builds it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

NAME = "pykvm._core"

if "PYKVM_CORE" in os.environ:
    spec = importlib.util.spec_from_file_location(NAME, os.environ["PYKVM_CORE"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


def run_sanitized(core: Path, *arguments: str, **variables: str) -> None:
    """Run pytest in a process with that core. A sanitizer's complaint ends it, and fails here."""
    asan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    environment = {
        **os.environ,
        **variables,
        "LD_PRELOAD": asan.stdout.strip(),
        "PYKVM_CORE": str(core),
        "PYTHONPATH": str(Path(__file__).parent),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own are not ours to mend
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "sanitized_core",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
