"""Which lab a command goes to, and options that cannot work."""

from __future__ import annotations

from argparse import Namespace

import pytest

from pykvm import cli
from pykvm.errors import ConfigError
from pykvm.lab.cli import choose

PRIVATE, KEPT = False, True


def options(**given: object) -> Namespace:
    nothing = {"cpus": None, "memory": None, "kernel": None, "keep": False, "idle": 5.0}
    return Namespace(**nothing | given)


@pytest.mark.parametrize(
    ("runs", "given", "expected"),
    [
        (False, {}, PRIVATE),
        (False, {"keep": True}, KEPT),
        (False, {"keep": True, "cpus": 2}, KEPT),
        (True, {}, KEPT),
        (True, {"keep": True}, KEPT),
        (True, {"memory": "1G"}, PRIVATE),
    ],
)
def test_kept_lab_is_taken_when_it_is_asked_for_or_will_do(
    monkeypatch: pytest.MonkeyPatch, runs: bool, given: dict[str, object], expected: bool
) -> None:
    monkeypatch.setattr("pykvm.lab.cli.is_kept", lambda: runs)
    assert choose(options(**given)).kept == expected


def test_kept_lab_that_runs_cannot_be_asked_to_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykvm.lab.cli.is_kept", lambda: True)
    with pytest.raises(ConfigError, match="--stop"):
        choose(options(keep=True, kernel="6.1-generic"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--timeout", "0"], "--timeout"),
        (["--timeout", "soon"], "--timeout"),
        (["--cpus", "0"], "--cpus"),
        (["--cpus", "x"], "--cpus"),
        (["--memory", "1M"], "--memory"),
        (["--memory", "much"], "--memory"),
        (["sh"], "sh"),  # COMMAND comes behind --
    ],
)
def test_option_that_cannot_work_is_named_and_gives_125(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["lab", *words, "--", "true"])
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    assert code == 125
    assert named in capsys.readouterr().err
