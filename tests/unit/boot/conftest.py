"""A host for the kernel tests: an empty cache, no kernel of its own, and a scripted apt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_apt import APT, FakeApt

from pykvm.boot import kernels


@pytest.fixture(autouse=True)
def _bare_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYKVM_KERNEL", raising=False)
    monkeypatch.setattr(kernels, "BOOT", str(tmp_path / "boot"))


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "apt-cache", "dpkg-deb"):
        (programs / name).write_text(APT.format(here=programs))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return FakeApt(programs)
