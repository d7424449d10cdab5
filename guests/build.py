"""Compiles the guest programs: each folder here becomes one file of pykvm/guests/.

Reached from setup.py, as part of building the extension; both need the same compiler. The programs
themselves are best read in the order of `GUESTS`; pykvm/guest_programs.py finds them at run time.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
INCLUDE = HERE / "include"

# For every program. The headers in include/ hold functions that not every program uses.
COMMON = shlex.split(
    "-std=gnu11 -Os -static "
    "-Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wno-unused-function"
)
# No C library, no start-up files, nothing the compiler slips in that needs either.
FREESTANDING = shlex.split(
    "-ffreestanding -nostdlib -fno-pie -fno-stack-protector -fcf-protection=none "
    "-fno-asynchronous-unwind-tables "
    "-Wl,--build-id=none,-z,noseparate-code,-z,norelro,-z,noexecstack"
)
# No operating system either: no vector registers; an interrupt may use the stack at any time.
BARE_32 = shlex.split("-m32 -Wl,-m,elf_i386 -mgeneral-regs-only")
BARE_64 = shlex.split("-mno-red-zone -mgeneral-regs-only")

# What a program is linked as. The link addresses are the loaders' defaults (pykvm/boot/flat.py).
FORMATS = {
    "linux": [*FREESTANDING, "-Wl,-s"],
    "linux-libc": ["-Wl,-s"],
    "flat-real": [*FREESTANDING, *BARE_32, "-Wl,--oformat=binary,-Ttext=0x7c00"],
    "flat-protected": [*FREESTANDING, *BARE_32, "-Wl,--oformat=binary,-Ttext=0x100000"],
    "flat-long": [*FREESTANDING, *BARE_64, "-Wl,--oformat=binary,-Ttext=0x100000"],
    "flat-probe": [*FREESTANDING, *BARE_64, "-Wl,--oformat=binary,-Ttext=0x1000"],
    "elf32": [*FREESTANDING, *BARE_32, "-Wl,-Ttext-segment=0x100000"],
    "elf64": [*FREESTANDING, *BARE_64, "-Wl,-Ttext-segment=0x100000"],
}

# Folder: format. A folder's .S and .c files are its sources.
GUESTS = {
    "hello-real": "flat-real",
    "boot-sector": "flat-real",
    "hello-protected": "flat-protected",
    "modes": "flat-real",
    "hello-long": "flat-long",
    "hello-multiboot": "elf32",
    "hello-aout": "flat-protected",
    "hello-pvh": "elf32",
    "hello-elf64": "elf64",
    "echo": "elf64",
    "exceptions": "elf64",
    "timer": "elf64",
    "smp": "elf64",
    "paging": "elf64",
    "ring3": "elf64",
    "mmio": "elf64",
    "entropy": "elf64",
    "tiny-linux": "flat-long",
    "dirty": "elf64",
    "exits": "elf64",
    "virtqueue": "elf64",
    "network": "elf64",
    "snapshot": "elf64",
    "triplefault": "flat-protected",
    "hang": "flat-real",
    "spin": "flat-long",
    "reset": "flat-protected",
    "debugexit": "elf64",
    "probe": "flat-probe",
    "init": "linux",
    "lab-agent": "linux-libc",
}


def build_guests(output: Path, force: bool = False) -> None:
    """Compile into `output` the guests whose sources changed since the last time.

    `$CC` names another compiler than gcc and `$CFLAGS` more of its options, as they do for the
    extension. Ends the build with a message when the compiler is missing or a guest is wrong.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name, guest_format in GUESTS.items():
        program = output / name
        if force or not program.exists() or program.stat().st_mtime < _newest_source(name):
            compile_program(program, _sources(name), FORMATS[guest_format])
    # Not a program: what `pykvm kernel build` configures a kernel with.
    shutil.copytree(HERE / "linux", output / "linux", dirs_exist_ok=True)


def pack_course(output: Path) -> None:
    """Copy what `pykvm lesson` reads, the pages and the guests' sources, for an installation."""
    ignored = shutil.ignore_patterns("__pycache__")
    for source, target in ((HERE, "guests"), (HERE.parent / "docs" / "lessons", "lessons")):
        shutil.copytree(source, output / target, dirs_exist_ok=True, ignore=ignored)


def _sources(name: str) -> list[Path]:
    return sorted(path for path in (HERE / name).iterdir() if path.suffix in (".S", ".c"))


def _newest_source(name: str) -> float:
    inputs = [Path(__file__), *(HERE / name).iterdir(), *INCLUDE.iterdir()]
    return max(path.stat().st_mtime for path in inputs)


def compile_program(program: Path, sources: list[Path], flags: list[str]) -> None:
    """Compile `sources` to `program`. Ends with a message when that is not possible."""
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    flags = [*COMMON, *flags, *shlex.split(os.environ.get("CFLAGS", "")), f"-I{INCLUDE}"]
    command = [*compiler, *flags, "-o", str(program), *map(str, sources)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise SystemExit(
            f"{compiler[0]} is missing: pykvm's build compiles its C core and guest programs; "
            "on Debian: apt install gcc libc6-dev python3-dev"
        ) from None
    except subprocess.CalledProcessError:
        raise SystemExit(f"guests/{program.name} does not compile; see above") from None
