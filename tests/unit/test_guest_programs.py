"""The guest programs' build: its table, its ports, and finding what it made."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from pykvm import guest_programs, layout
from pykvm.errors import HostError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from guests import build  # noqa: E402


def test_ports_in_guests_are_those_of_the_layout() -> None:
    header = (ROOT / "guests/include/ports.h").read_text()
    ports = {
        name: int(value, 16) for name, value in re.findall(r"define (PORT_\w+) +(0x\w+)", header)
    }
    assert ports
    assert ports == {name: getattr(layout, name) for name in ports}


def test_every_folder_with_sources_is_built() -> None:
    folders = {path.parent.name for path in (ROOT / "guests").glob("*/*.S")}
    assert folders - {"include"} <= set(build.GUESTS)


def test_path_of_a_built_program_is_a_file() -> None:
    assert Path(guest_programs.path("init")).is_file()
    assert set(guest_programs.names()) >= set(build.GUESTS)


def test_unknown_program_is_refused_with_the_remedy() -> None:
    with pytest.raises(HostError, match="pip install"):
        guest_programs.path("no-such-guest")


def test_init_stays_small() -> None:
    assert Path(guest_programs.path("init")).stat().st_size < 20 * 1024


@pytest.fixture
def one_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "GUESTS", {"hang": "flat-real"})


@pytest.mark.usefixtures("one_guest")
def test_program_newer_than_its_sources_is_left_alone(tmp_path: Path) -> None:
    build.build_guests(tmp_path)
    (tmp_path / "hang").write_bytes(b"kept")
    build.build_guests(tmp_path)
    assert (tmp_path / "hang").read_bytes() == b"kept"


@pytest.mark.usefixtures("one_guest")
def test_program_older_than_a_source_is_built_again(tmp_path: Path) -> None:
    build.build_guests(tmp_path)
    (tmp_path / "hang").write_bytes(b"stale")
    os.utime(tmp_path / "hang", (0, 0))
    build.build_guests(tmp_path)
    assert (tmp_path / "hang").read_bytes() != b"stale"


@pytest.mark.usefixtures("one_guest")
def test_missing_compiler_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(SystemExit, match=r"no-such-compiler is missing.*apt install gcc"):
        build.build_guests(tmp_path)
