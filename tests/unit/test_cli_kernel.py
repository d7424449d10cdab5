from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pykvm import cli_kernel
from pykvm.boot import kernel_build, kernels
from pykvm.boot.kernels import Kernel
from pykvm.cli import main
from pykvm.debug import symbols
from pykvm.errors import ConfigError, HostError

KERNEL = Kernel("6.1.0-55-cloud-amd64", Path("/cache/vmlinuz-6.1.0-55-cloud-amd64"))


@pytest.fixture(autouse=True)
def _bare_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PYKVM_KERNEL", raising=False)
    monkeypatch.setattr(kernels, "BOOT", str(tmp_path / "boot"))


def have(release: str) -> Path:
    image = kernels.kernels_dir() / release / "boot" / f"vmlinuz-{release}"
    image.parent.mkdir(parents=True)
    image.write_bytes(bytes(2_000_000))
    return image


def test_fetch_prints_the_path_alone_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(pattern, progress, note, *, update):  # type: ignore[no-untyped-def]
        assert (pattern, update) == ("6.1-cloud", True)
        note("downloading linux-image-6.1.0-55-cloud-amd64")
        progress(1, 2)
        return KERNEL

    monkeypatch.setattr(kernels, "fetch", fetch)
    assert main(["kernel", "fetch", "--update", "6.1-cloud"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{KERNEL.image}\n"
    assert err == "pykvm: downloading linux-image-6.1.0-55-cloud-amd64\n"


def test_a_fetch_that_fails_says_why_with_code_125(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(*_: object, **__: object) -> Kernel:
        raise HostError("no network")

    monkeypatch.setattr(kernels, "fetch", fetch)
    assert main(["kernel", "fetch"]) == 125
    assert capsys.readouterr() == ("", "pykvm: no network\n")


def test_build_passes_its_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(source, config, jobs, progress, note):  # type: ignore[no-untyped-def]
        assert (source, config, jobs) == ("6.12", Path("own.config"), 3)
        return KERNEL

    monkeypatch.setattr(kernel_build, "build", build)
    assert main(["kernel", "build", "6.12", "--config", "own.config", "-j3"]) == 0
    assert capsys.readouterr() == (f"{KERNEL.image}\n", "")


def test_ls_marks_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    old, new = have("6.1.0-55-cloud-amd64"), have("6.12.117+deb12-cloud-amd64")
    (new.parent.parent / "lib/modules/6.12.117+deb12-cloud-amd64").mkdir(parents=True)
    assert main(["kernel", "ls"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["*", "6.12.117+deb12-cloud-amd64", "2.0", "MB", "modules", str(new)],
        ["6.1.0-55-cloud-amd64", "2.0", "MB", str(old)],
    ]


def test_ls_in_json_gives_bytes_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    image = have("6.1.0-55-cloud-amd64")
    assert main(["kernel", "ls", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [
        {
            "name": "6.1.0-55-cloud-amd64",
            "image": str(image),
            "size": 2_000_000,
            "modules": None,
            "config": None,
            "vmlinux": None,
            "default": True,
        }
    ]
    assert err == ""


def test_ls_shows_a_default_from_outside_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    have("6.1.0-55-cloud-amd64")
    own = tmp_path / "bzImage"
    own.touch()
    monkeypatch.setenv("PYKVM_KERNEL", str(own))
    main(["kernel", "ls", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["default"]) for row in rows] == [
        ("bzImage", True),
        ("6.1.0-55-cloud-amd64", False),
    ]


def test_ls_without_kernels_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernel", "ls"]) == 0
    assert capsys.readouterr() == ("", "no kernels: `pykvm kernel fetch` downloads one\n")


def test_ls_without_kernels_is_an_empty_list_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernel", "ls", "--json"]) == 0
    assert capsys.readouterr() == ("[]\n", "")


def test_ls_warns_of_an_environment_that_means_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    have("6.1.0-55-cloud-amd64")
    monkeypatch.setenv("PYKVM_KERNEL", "6.99")
    assert main(["kernel", "ls", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["default"] for row in json.loads(out)] == [False]
    assert err.startswith("pykvm: PYKVM_KERNEL: 6.99 is neither")


@pytest.mark.parametrize("words", [[], ["bogus"], ["ls", "extra"]])
def test_a_wrong_command_line_has_code_125(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["kernel", *words])
    assert left.value.code == 125


def test_the_default_kernel_is_fetched_when_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "fetch", lambda *_: KERNEL)
    assert cli_kernel.find_or_fetch() == str(KERNEL.image)
    assert "fetching Debian's" in capsys.readouterr().err


def test_the_default_kernel_is_not_fetched_when_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "fetch", lambda *_: pytest.fail("fetched"))
    image = have("6.1.0-55-cloud-amd64")
    assert cli_kernel.find_or_fetch() == str(image)
    assert cli_kernel.find_or_fetch("6.1") == str(image)


def test_a_kernel_named_wrongly_is_not_fetched() -> None:
    with pytest.raises(ConfigError, match=r"6\.99 is neither a file nor a kernel"):
        cli_kernel.find_or_fetch("6.99")


def test_a_terminal_sees_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with cli_kernel.Report() as report:
        report.progress(1_000_000, 2_000_000)
        report.progress(2_000_000, 2_000_000)
        report.note("unpacking")
    err = capsys.readouterr().err
    assert "2.00M/2.00M" in err
    assert err.endswith("\npykvm: unpacking\n")


def test_a_count_without_a_total_has_a_bar_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with cli_kernel.Report() as report:
        report.progress(7, 0)
    assert "7 files" in capsys.readouterr().err


def test_adding_the_parser_imports_nothing_heavy() -> None:
    script = (
        "import argparse, sys; before = set(sys.modules); import pykvm.cli_kernel as c; "
        "c.add_parser(argparse.ArgumentParser().add_subparsers()); "
        "print(*sorted({'subprocess', 'tempfile', 'dataclasses', 'tqdm', 'json'}"
        " & (set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_symbols_of_a_stripped_kernel_are_made_once_and_kept_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_kernel(_image: object) -> list[tuple[int, str, str]]:
        return [(0xFFFF_FFFF_8100_0000, "T", "start_kernel")]

    have("6.1.0-55-cloud-amd64")
    monkeypatch.setattr(symbols, "read_kernel", read_kernel)
    assert main(["kernel", "symbols", "6.1"]) == 0
    path = Path(capsys.readouterr().out.rstrip("\n"))
    assert path.parent == kernels.kernels_dir().parent / "symbols"
    assert symbols.of_elf(path.read_bytes())["start_kernel"] == 0xFFFF_FFFF_8100_0000
    monkeypatch.delattr(symbols, "read_kernel")
    assert main(["kernel", "symbols", "6.1"]) == 0
    assert capsys.readouterr().out == f"{path}\n"


def test_a_kernel_without_symbols_of_any_kind_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    have("6.1.0-55-cloud-amd64")
    assert main(["kernel", "symbols", "6.1"]) == 125
    assert "has no symbols, and no kallsyms either" in capsys.readouterr().err
