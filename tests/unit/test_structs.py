"""The structures that pykvm shares with KVM are laid out as the course's ctypes say, too."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
from pathlib import Path

import pytest

from pykvm._core import ffi

PATH = Path(__file__).resolve().parents[2] / "guests" / "by-hand"
OPAQUE = {"kvm_run"}  # pykvm's C code looks into it, cffi does not


def load(name: str):  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location(name, PATH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STRUCTURES = load("structs").STRUCTURES
USED = sorted({name for name in ffi.list_types()[1] if name.startswith("kvm_")} - OPAQUE)


@pytest.mark.parametrize("name", USED)
def test_a_structure_is_laid_out_as_by_hand(name: str) -> None:
    by_hand = STRUCTURES.get(name)
    assert by_hand is not None, f"add struct {name} to guests/by-hand/structs.py"
    used = ffi.typeof(f"struct {name}")
    assert ffi.sizeof(used) == ctypes.sizeof(by_hand)
    for field, about in used.fields:
        if not field:
            continue  # an unnamed structure or union: its members have places of their own
        assert about.offset == getattr(by_hand, field).offset, field


@pytest.fixture(scope="module")
def lesson() -> dict[str, type[ctypes.Structure]]:
    """What the first lesson defines."""
    source = (PATH / "host.py").read_text().partition("\nkvm = ")[0]  # without what it does
    names: dict[str, type[ctypes.Structure]] = {}
    exec(source, names)  # type: ignore[arg-type]
    return names


def test_the_first_lesson_has_the_same_structures(
    lesson: dict[str, type[ctypes.Structure]],
) -> None:
    for short, name in (
        ("Region", "kvm_userspace_memory_region"),
        ("Regs", "kvm_regs"),
        ("Segment", "kvm_segment"),
        ("Table", "kvm_dtable"),
        ("Sregs", "kvm_sregs"),
    ):
        places = [
            [getattr(made, field).offset for field, *_ in made._fields_]
            for made in (lesson[short], STRUCTURES[name])
        ]
        assert places[0] == places[1], name
        assert ctypes.sizeof(lesson[short]) == ctypes.sizeof(STRUCTURES[name])


def test_the_first_lesson_finds_kvm_run_where_the_header_has_it(
    lesson: dict[str, type[ctypes.Structure]], tmp_path: Path
) -> None:
    places = {
        f"{inside}{field}": outside + getattr(made, field).offset
        for made, inside, outside in (
            (lesson["Run"], "", 0),
            (lesson["Io"], "io.", lesson["Run"].io.offset),
        )
        for field, *_ in made._fields_
        if field != "padding"
    }
    assert len(places) == 14
    asserts = "".join(
        f'_Static_assert(offsetof(struct kvm_run, {field}) == {at}, "{field}");\n'
        for field, at in places.items()
    )
    source = tmp_path / "places.c"
    source.write_text(f"#include <linux/kvm.h>\n#include <stddef.h>\n{asserts}")
    subprocess.run(["gcc", "-fsyntax-only", source], check=True)
