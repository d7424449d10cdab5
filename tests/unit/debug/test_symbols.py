"""Names for addresses: of a real ELF's symbol table, of lists without sizes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.debug import symbols
from pykvm.debug.symbols import REACH, SIZE_MAX, SymbolTable

SOURCE = """
        .text
        .globl  _start
        .type   _start, @function
_start: nop
        nop
        ret
        .size   _start, . - _start
        .skip   16
        .type   helper, @function
helper: ret
        .size   helper, . - helper
bare:   ret                             # no type and no size: as assembly often is
        .data
        .type   number, @object
number: .long   1
        .size   number, . - number
"""


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An ELF file as the host's own tools make it: code at 0x100000."""
    folder = tmp_path_factory.mktemp("elf")
    (folder / "code.S").write_text(SOURCE)
    command = ["gcc", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x100000", "-o"]
    subprocess.run([*command, folder / "code", folder / "code.S"], check=True)
    return (folder / "code").read_bytes()


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0x0F_FFFF, None),
        (0x10_0000, "_start"),
        (0x10_0002, "_start+0x2"),
        (0x10_0003, None),  # behind the end of _start
        (0x10_0013, "helper"),
        (0x10_0014, "bare"),
        (0x10_0015, "bare+0x1"),
        (0xFFFF_FFFF_FFFF_FFFF, None),
    ],
)
def test_address_has_the_name_of_its_function(elf: bytes, address: int, name: str | None) -> None:
    assert symbols.of_elf(elf).find(address) == name


def test_stripped_elf_has_no_names(elf: bytes, tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(elf)
    subprocess.run(["strip", tmp_path / "code"], check=True)
    assert symbols.of_elf((tmp_path / "code").read_bytes()).find(0x10_0000) is None


@pytest.mark.parametrize("image", [b"", b"\x7fELF", b"not an ELF file" * 100])
def test_image_without_symbols_has_no_names(image: bytes) -> None:
    assert symbols.of_elf(image).find(0x10_0000) is None


@given(data=st.data())
def test_damaged_elf_gives_names_or_none_but_never_fails(elf: bytes, data: st.DataObject) -> None:
    damaged = bytearray(elf)
    places = st.integers(0, len(elf) - 1)
    for at in data.draw(st.lists(places | st.integers(0, 63), max_size=8)):
        damaged[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.none() | places)
    name = symbols.of_elf(bytes(damaged[:end])).find(0x10_0000)
    assert name is None or isinstance(name, str)


def test_data_has_names_but_not_where_functions_are_asked_for(elf: bytes) -> None:
    everything = symbols.of_elf(elf)
    assert everything.find(everything["number"] + 2) == "number+0x2"
    functions = symbols.of_elf(elf, symbols.FUNCTIONS)
    assert "helper" in functions
    assert "number" not in functions


def test_a_symbol_without_size_reaches_a_page_far() -> None:
    table = SymbolTable([(0x1000, 0, "bare")], "a test")
    assert table.find(0x1000 + REACH - 1) == f"bare+{REACH - 1:#x}"
    assert table.find(0x1000 + REACH) is None


def test_without_sizes_a_symbol_ends_at_the_next_one_or_soon() -> None:
    far = 0xFFFFFFFF81000000
    table = SymbolTable.without_sizes([(far, "b"), (0x1000, "a"), (far + 0x5000, "c")], "a test")
    assert table.find(far + 0x4FFF) == "b+0x4fff"
    assert table.find(far + 0x5000) == "c"
    assert table.find(0x1000 + SIZE_MAX) is None  # not a's, however far the next one is
    assert (table["a"], len(table), table.search("b")) == (0x1000, 3, {"b": far})


def test_a_number_has_a_name_but_no_address_is_called_after_it() -> None:
    table = SymbolTable([(0x1000, 16, "function")], "a test", [(0x40, "current_task")])
    assert table["current_task"] == 0x40
    assert table.find(0x40) is None
    assert table.find(0x1000) == "function"


PER_CPU = """
        .text
        .globl  _start
_start: nop
        .section .data..percpu, "aw"
        .type   counter, @object
counter: .long  0
        .size   counter, . - counter
        .globl  page_size
        .set    page_size, 4096
"""
AS_LINUX_DOES = """
SECTIONS {
        .data..percpu 0 : { *(.data..percpu) }
        .text 0x100000 : { *(.text) }
}
"""


def test_per_cpu_variables_and_absolute_symbols_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "code.S").write_text(PER_CPU)
    (tmp_path / "script").write_text(AS_LINUX_DOES)
    command = ["gcc", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]
    command.append(f"-Wl,-T,{tmp_path}/script")
    subprocess.run([*command, "-o", tmp_path / "code", tmp_path / "code.S"], check=True)
    table = symbols.of_elf((tmp_path / "code").read_bytes())
    assert (table["counter"], table["page_size"]) == (0, 4096)
    assert table.find(0) is table.find(4096) is None
    assert table.find(table["_start"]) == "_start"


class Guest:
    """What `symbols.place` asks of a machine."""

    def __init__(self, table: SymbolTable) -> None:
        self.symbols = table
        self.entry = SimpleNamespace(linked=((0xFFFFFFFF81000000, 0x100_0000, 0x2000),))


def test_code_that_runs_where_it_was_loaded_has_the_name_it_is_linked_under() -> None:
    machine: Any = Guest(SymbolTable([(0xFFFFFFFF81000100, 32, "startup_64")], "a test"))
    assert symbols.place(machine, 0x100_0104) == "startup_64+0x4"
    assert symbols.place(machine, 0xFFFFFFFF81000104) == "startup_64+0x4"
    assert symbols.place(machine, 0x104) is None
