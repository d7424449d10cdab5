from __future__ import annotations

from typing import Any

import pytest

from pykvm.cli import main
from pykvm.errors import ConfigError
from pykvm.options import Option, describe, number, parse, seconds

OPTIONS = (
    Option("-m --memory", "SIZE", "how much", "256M"),
    Option("--adds", "", "another"),
    Option("--add", "FILE", "one more", repeated=True),
    Option("--any-host", "", "wherever"),
)


def arguments(*words: str) -> Any:
    return parse(words, OPTIONS)


@pytest.mark.parametrize("words", [["--memory", "1G"], ["--memory=1G"], ["-m", "1G"], ["-m1G"]])
def test_a_value_follows_its_option_in_four_ways(words: list[str]) -> None:
    assert arguments(*words).memory == "1G"


def test_what_is_not_asked_for_is_the_default() -> None:
    args = arguments()
    assert (args.memory, args.add, args.any_host, args.operands) == ("256M", [], False, [])


def test_the_last_value_counts_unless_they_are_collected() -> None:
    args = arguments("-m1", "--add", "a", "-m2", "--add=b")
    assert (args.memory, args.add) == ("2", ["a", "b"])


def test_two_parses_share_nothing() -> None:
    arguments("--add", "a")
    assert arguments().add == []


def test_operands_stand_anywhere() -> None:
    args = arguments("one", "--any-host", "-", "-m", "1", "two")
    assert (args.operands, args.any_host) == (["one", "-", "two"], True)


def test_a_value_may_look_like_an_option() -> None:
    assert arguments("--memory", "--add").memory == "--add"
    assert arguments("--memory=a=b").memory == "a=b"
    assert arguments("--memory=").memory == ""


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--bogus"], "--bogus: there is no such option"),
        (["--mem", "1"], "--mem: there is no such option"),
        (["-x1"], "-x: there is no such option"),
        (["--any-host=yes"], "--any-host: takes no value"),
        (["kernel", "-m"], "-m: its value is missing: -m SIZE"),
    ],
)
def test_wrong_options_are_named(words: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        arguments(*words)


def test_help_tells_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert describe(OPTIONS) == (
        "  -m, --memory SIZE     how much\n"
        "  --adds                another\n"
        "  --add FILE            one more\n"
        "  --any-host            wherever"
    )


def test_boot_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: pykvm boot [options] [KERNEL] [-- COMMAND…]\n")
    assert "--initrd FILE" in out
    assert err == ""


@pytest.mark.parametrize("words", [["--bogus"], ["--timeout"], ["one", "two"]])
def test_a_wrong_boot_command_has_code_125(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["boot", *words]) == 125
    assert capsys.readouterr().err.startswith("pykvm: ")


@pytest.mark.parametrize(
    ("text", "value"), [("1.5", 1.5), ("10s", 10), ("2m", 120), ("1e3h", 36e5)]
)
def test_a_time_may_have_a_unit(text: str, value: float) -> None:
    assert number(text, "--timeout", seconds) == value


@pytest.mark.parametrize("text", ["", "s", "1x", "-1s", "nand", "infd", "1 m m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--timeout: .* try --timeout 60"):
        number(text, "--timeout", seconds)


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("--memry", "write --memory"),
        ("--mem", "write --memory"),
        ("-memory", "write --memory"),
        ("--any_host=1", "write --any-host"),
        ("-add", "write --add"),
        ("-smp", "write --cpus N"),
        ("-nographic", "leave it out: the guest's console is here"),
        ("-qqq", "see 'pykvm boot --help'"),
        ("--xyz", "see 'pykvm boot --help'"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(word: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        arguments(word, "1")
    assert str(refused.value) == f"{word.partition('=')[0]}: there is no such option; {remedy}"
