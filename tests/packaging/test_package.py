"""The package as users get it: sdist from a clean tree, wheel from that, installed elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pykvm.errors import PykvmError
from pykvm.kvm import Kvm

ROOT = Path(__file__).resolve().parents[2]
GUESTS = {source.parent.name for source in (ROOT / "guests").glob("*/*.[Sc]")} - {
    "include"
}  # what guests share


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a tree in which nothing was built yet."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout tells sources from what was built")
    tree = tmp_path_factory.mktemp("tree")
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    run(sys.executable, "setup.py", "-q", "sdist", cwd=tree)
    (archive,) = (tree / "dist").iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist alone; setuptools and cffi are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ("wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(folder), str(sdist))
    run(sys.executable, "-m", "pip", *build, cwd=folder)
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package, to be put in front of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    install = ("install", "-q", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    run(sys.executable, "-m", "pip", *install, cwd=folder)
    return folder


def test_sdist_has_every_source_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"csrc/api.h", "csrc/uapi.cdef", "csrc/build_ffi.py", "guests/build.py"} <= names
    assert {"README.md", "setup.py", "pyproject.toml", "tests/c/check.h"} <= names
    assert {f"guests/{name}" for name in GUESTS} <= names
    built = {n for n in names if n.endswith((".so", ".o", "_core.c")) or "pykvm/guests/" in n}
    assert not built


def test_wheel_is_for_python_311_and_every_later_one(wheel: Path) -> None:
    assert "-cp311-abi3-linux_" in wheel.name


def test_wheel_has_the_extension_its_stub_and_every_guest(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"pykvm/_core.abi3.so", "pykvm/_core.pyi", "pykvm/py.typed"} <= names
    assert {f"pykvm/guests/{name}" for name in GUESTS} <= names
    course = {"guests/build.py", "guests/timer/main.c", "lessons/05-timer.md"}
    assert {f"pykvm/guests/course/{name}" for name in course} <= names
    tops = {name.partition("/")[0].rpartition(".")[2] for name in names}
    assert tops == {"pykvm", "data", "dist-info"}


def test_wheel_has_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (script,) = [name for name in archive.namelist() if "/scripts/" in name]
        assert script.endswith(".data/scripts/pykvm")
        assert archive.read(script).startswith(b"#!python\n")  # for pip to replace


def test_wheel_has_every_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            name
            for name in archive.namelist()
            if name.endswith(".py") and not name.startswith("pykvm/guests/")
        }
    tracked = run("git", "ls-files", "pykvm", cwd=ROOT).split()
    assert packed == {name for name in tracked if name.endswith(".py") and (ROOT / name).is_file()}


def test_extension_asks_for_no_more_than_the_c_library(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract("pykvm/_core.abi3.so", tmp_path)
    needed = [
        line
        for line in run("readelf", "-d", library, cwd=tmp_path).splitlines()
        if "NEEDED" in line
    ]
    assert all("libc.so" in line or "libpthread.so" in line for line in needed)


def test_installed_package_is_itself_and_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import pykvm._core; print(pykvm._core.__file__)"
    output = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(output.strip()) == installed / "pykvm" / "_core.abi3.so"


def test_every_module_is_imported_without_a_warning(installed: Path, tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((installed / "pykvm").rglob("*.py"))
        if path.name != "__main__.py"
    ]
    assert len(modules) > 30
    code = f"import importlib; [importlib.import_module(name) for name in {modules}]"
    run(sys.executable, "-W", "error", "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))


def test_installed_package_boots_its_own_guests(installed: Path, tmp_path: Path) -> None:
    try:
        Kvm().close()
    except PykvmError as error:
        pytest.skip(f"no usable KVM: {error}")
    code = "import sys; from pykvm import guest_programs as g; print(g.path('hello-elf64'))"
    guest = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).strip()
    assert guest.startswith(str(installed))
    boot = (sys.executable, "-W", "error", "-m", "pykvm", "boot", guest, "--timeout", "30")
    output = run(*boot, cwd=tmp_path, PYTHONPATH=str(installed))
    assert "ok: " in output
