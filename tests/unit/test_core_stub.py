"""The stub of the C core names what the core has: no more, no less."""

from __future__ import annotations

import ast
from pathlib import Path

import pykvm
from pykvm._core import lib

STUB = Path(pykvm.__path__[0]) / "_core.pyi"


def stub_names() -> set[str]:
    tree = ast.parse(STUB.read_text())
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "_Lib")
    functions = {n.name for n in body if isinstance(n, ast.FunctionDef)} - {"__getattr__"}
    values = {n.target.id for n in body if isinstance(n, ast.AnnAssign)}
    return functions | values


def test_stub_and_core_have_the_same_names() -> None:
    core = {name for name in dir(lib) if not name.startswith(("KVM_", "_"))}
    assert stub_names() == core


def test_every_kernel_constant_is_an_integer() -> None:
    constants = [name for name in dir(lib) if name.startswith("KVM_")]
    assert constants
    assert all(isinstance(getattr(lib, name), int) for name in constants)
