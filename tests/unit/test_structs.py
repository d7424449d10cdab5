"""The structures that pykvm shares with KVM are laid out as the course's ctypes say, too."""

from __future__ import annotations

import ctypes
import importlib.util
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


def test_the_first_lesson_has_the_same_structures() -> None:
    source = (PATH / "host.py").read_text().partition("\nkvm = ")[0]  # without what it does
    lesson: dict[str, type[ctypes.Structure]] = {}
    exec(source, lesson)  # type: ignore[arg-type]
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
