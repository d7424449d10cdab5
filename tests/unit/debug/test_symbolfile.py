"""The file that gives gdb a stripped kernel's names, held against readelf and gdb."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pykvm.boot.kernels import Kernel
from pykvm.debug import symbolfile, symbols
from pykvm.errors import ConfigError

TEXT, DATA, INIT = 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8200_0000, 0xFFFF_FFFF_8300_0000
SYMBOLS = [
    (0x40, "A", "current_task"),
    (TEXT, "T", "_stext"),
    (TEXT, "D", "a_mark_in_between"),
    (TEXT, "T", "startup_64"),
    (TEXT + 0x100, "t", "helper.isra.0"),
    (DATA, "D", "jiffies"),
    (DATA + 0x40, "b", "counter"),
    (INIT, "T", "start_kernel"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "symbols"
    path.write_bytes(symbolfile.make(SYMBOLS))
    return path


def test_its_symbols_are_those_it_was_made_of(path: Path) -> None:
    table = symbols.of_elf(path.read_bytes())
    assert {name: table[name] for name in table} == {name: at for at, _, name in SYMBOLS}
    assert table.find(TEXT + 0x110) == "helper.isra.0+0x10"
    assert table.find(DATA + 0x3F) == "jiffies+0x3f"
    assert table.find(0x40) is None  # a per-CPU variable's offset is no place


def test_readelf_finds_no_fault_and_a_section_for_each_run(path: Path) -> None:
    told = subprocess.run(["readelf", "-WSs", path], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    sections = [line.split()[1:6] for line in told.stdout.splitlines() if "NOBITS" in line]
    assert [(name, int(start, 16)) for _, name, _, start, *_ in sections] == [
        (".text", TEXT), (".data", DATA), (".text.2", INIT),
    ]  # fmt: skip


def test_gdb_breaks_at_functions_and_knows_data(path: Path) -> None:
    if shutil.which("gdb") is None:
        pytest.skip("no gdb")
    asked = ("break start_kernel", "info symbol startup_64", "print &jiffies", "print $_exitcode")
    words = [word for command in asked for word in ("-ex", command)]
    told = subprocess.run(
        ["gdb", "-q", "-nx", "-batch", *words, path], capture_output=True, text=True, check=True
    )
    assert f"Breakpoint 1 at {INIT:#x}" in told.stdout, told
    assert "startup_64 in section .text" in told.stdout
    assert f"(<data variable, no debug info> *) {DATA:#x} <jiffies>" in told.stdout
    assert "warning" not in told.stderr


def test_a_kernel_with_symbols_needs_no_file(path: Path) -> None:
    assert symbolfile.write(Kernel("x", path)) == path


def test_what_has_no_symbols_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(10000))
    with pytest.raises(ConfigError, match="has no symbols, and no kallsyms either"):
        symbolfile.write(Kernel("x", tmp_path / "x"), tmp_path / "y")


def test_a_file_that_cannot_be_written_is_refused_by_its_option(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output: .*Not a directory"):
        symbolfile.write(Kernel("x", path), path / "no" / "folder")


def test_the_cache_keeps_the_newest_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(symbolfile, "ENTRIES_MAX", 2)
    monkeypatch.setattr(symbols, "read_kernel", lambda image: SYMBOLS)
    places = []
    for number in range(3):
        image = tmp_path / "kernel"
        image.write_bytes(bytes([number]) * 100)
        places.append(symbolfile.write(Kernel("x", image)))
    assert [place.exists() for place in places] == [False, True, True]
