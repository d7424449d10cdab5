"""The lab's initrd: modules in their order, decompressed, without signatures."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot.kernels import Kernel
from pykvm.errors import HostError
from pykvm.lab.images import SIGNATURE_END, depends, load_order, make_initrd, make_kernel, unsigned


def module(*dependencies: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(dependencies).encode() + b"\0name=x\0"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_modules_come_behind_those_they_depend_on(tmp_path: Path) -> None:
    (tmp_path / "b.ko").write_bytes(module("c-c", "d"))
    (tmp_path / "kvm").mkdir()
    (tmp_path / "kvm" / "c_c.ko").write_bytes(module("d"))
    (tmp_path / "d.ko").write_bytes(module())
    (tmp_path / "unwanted.ko").write_bytes(module())
    assert list(load_order(tmp_path, ("b", "d"))) == ["d", "c_c", "b"]


def test_module_that_the_kernel_has_built_in_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(module("built-in"))
    assert list(load_order(tmp_path, ("a", "virtiofs"))) == ["a"]


@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)]
)
def test_modules_are_decompressed(tmp_path: Path, suffix: str, compress: type[bytes]) -> None:
    (tmp_path / f"a.ko{suffix}").write_bytes(compress(module()))
    assert load_order(tmp_path, ("a",)) == {"a": module()}


def test_signature_is_cut_off() -> None:
    signature = b"s" * 300
    info = bytes(8) + len(signature).to_bytes(4, "big")
    assert unsigned(module() + signature + info + SIGNATURE_END) == module()


@given(st.binary())
def test_no_bytes_make_the_module_reader_fail(data: bytes) -> None:
    assert depends(b"\0depends=a,b\0" + data) == ["a", "b"]
    assert data.startswith(unsigned(data))


@pytest.mark.usefixtures("cache")
def test_kernel_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no modules"):
        make_initrd(Kernel("6.12", tmp_path / "vmlinuz"))


@pytest.mark.usefixtures("cache")
def test_kernel_that_cannot_be_decompressed_is_used_as_it_is(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"not a bzImage")
    assert make_kernel(Kernel("6.12", image)) == image
