"""Finding the kernel modules that devices need, with what they depend on."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from pykvm.boot.modules import initrd_files, unknown
from pykvm.errors import BootError


def module(*depends: str) -> bytes:
    return b"\x7fELF license=GPL\0depends=" + ",".join(depends).encode() + b"\0retpoline=Y\0"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree as a package has it: disk needs ring and core, ring needs core; all compressed."""
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/core.ko").write_bytes(module())
    (tmp_path / "kernel/the-ring.ko.xz").write_bytes(lzma.compress(module("core")))
    (tmp_path / "kernel/disk.ko.gz").write_bytes(gzip.compress(module("the_ring", "core")))
    names = ("disk", "the-ring", "core", "lost")
    (tmp_path / "modules.order").write_text("".join(f"kernel/{name}.ko\n" for name in names))
    return tmp_path


def test_what_a_module_depends_on_comes_before_it(tree: Path) -> None:
    files = initrd_files(tree, ["disk"])
    assert files["pykvm/modules/order"] == b"core.ko\nthe_ring.ko\ndisk.ko\n"


def test_modules_are_stored_decompressed(tree: Path) -> None:
    files = initrd_files(tree, ["disk"])
    assert files["pykvm/modules/the_ring.ko"] == module("core")
    assert files["pykvm/modules/disk.ko"] == module("the_ring", "core")


def test_dashes_and_underscores_are_the_same(tree: Path) -> None:
    assert initrd_files(tree, ["the-ring"]) == initrd_files(tree, ["the_ring"])


def test_a_name_the_tree_does_not_have_is_left_out(tree: Path) -> None:
    assert initrd_files(tree, ["built_in"]) == {"pykvm/modules/order": b""}


def test_names_are_known_as_modules_or_built_in_or_there_is_no_telling(tree: Path) -> None:
    assert unknown(tree, ["disk", "nothing"]) == []
    (tree / "modules.builtin").write_text("kernel/drivers/virtio/virtio-pci.ko\n")
    assert unknown(tree, ["disk", "virtio_pci", "virtio-pci", "nothing"]) == ["nothing"]


def test_a_module_that_is_listed_and_missing_is_an_error(tree: Path) -> None:
    with pytest.raises(BootError, match="lost"):
        initrd_files(tree, ["lost"])


def test_a_tree_without_a_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BootError, match=r"modules\.order"):
        initrd_files(tmp_path, ["disk"])
