"""The doctor's judgement, memory and telling, with results made up: no KVM is asked."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import pykvm
from pykvm import cli, cli_boot, cli_doctor, doctor, guest_programs, layout
from pykvm.doctor import examination
from pykvm.doctor.checks import CHECKS
from pykvm.doctor.costs import LABELS
from pykvm.doctor.examination import Examination, Level, Verdict, judge
from pykvm.doctor.guest import EXCEPTION, INTERRUPT, Answer, Code, _addresses
from pykvm.doctor.host import Result
from pykvm.errors import KvmError

SOURCE = Path(pykvm.__path__[0]).parent / "guests" / "probe"


def results(**failed: str) -> dict[str, Result]:
    """Every check passed, but those named: their details."""
    return {
        check.key: Result(False, failed[check.key]) if check.key in failed else Result(True)
        for check in CHECKS
    }


def found(**failed: str) -> Examination:
    host = {"kernel": "6.1", "cpu": "CPU", "virtualization": "SVM", "hypervisor": "no"}
    outcome = results(**failed)
    costs: dict[str, float | None] = dict.fromkeys(LABELS, 1.5)
    return Examination(judge(outcome), host | {"kvm_api": "12"}, outcome, costs, {"pit2": 1})


# ── the verdict ──────────────────────────────────────────────────────────────────────────────────


def test_a_host_that_passes_everything_runs_linux() -> None:
    assert judge(results()) == Verdict(Level.LINUX, "runs Linux")


def test_what_linux_does_not_need_does_not_change_the_verdict() -> None:
    assert judge(results(watchpoint="never stops", int80="#UD")).level is Level.LINUX


def test_a_question_that_does_not_arise_does_not_change_the_verdict() -> None:
    assert judge(results() | {"invpcid": Result(None, "not there")}).level is Level.LINUX


@pytest.mark.parametrize("key", [check.key for check in CHECKS if check.linux])
def test_each_thing_linux_needs_makes_it_small_guests_only(key: str) -> None:
    verdict = judge(results(**{key: "triple fault"}))
    assert verdict.level is Level.SMALL_GUESTS
    assert "triple fault" in verdict.text
    assert "pykvm lab --" in verdict.text


def test_syscall_is_named_before_all_else() -> None:
    verdict = judge(results(long_mode="slow", syscall="does not enter ring 0", popcnt="#UD"))
    assert verdict.text == (
        "runs small guests only: SYSCALL from ring 3 does not enter ring 0 here; use 'pykvm lab --'"
    )


def test_a_host_on_which_no_mode_works_has_no_usable_kvm() -> None:
    verdict = judge(results(real_mode="KVM_CREATE_VM", protected_mode="x", long_mode="busy"))
    assert verdict == Verdict(Level.NONE, "no usable KVM: busy")


def test_a_kvm_that_cannot_be_opened_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise KvmError("open /dev/kvm", 13, "ask for it")

    monkeypatch.setattr(examination, "Kvm", refuse)
    patient = examination.examine()
    assert patient.verdict.level is Level.NONE
    assert patient.verdict.text.endswith("Permission denied (ask for it)")
    assert not patient.results
    assert not patient.costs
    assert not patient.capabilities


# ── the telling ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("failed", "code"),
    [({}, 0), ({"syscall": "no"}, 1), (dict.fromkeys(examination.MODES, "no"), 2)],
)
def test_the_exit_code_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, failed: dict[str, str], code: int
) -> None:
    monkeypatch.setattr(examination, "examine", lambda: found(**failed))
    assert cli_doctor.run(Namespace(json=False)) == code
    assert found(**failed).as_json()["verdict"]["code"] == code


def test_the_table_has_a_line_for_each_check() -> None:
    marks = {True: "+", False: "-", None: "?"}
    lines = list(cli_doctor.table(found(syscall="no way"), marks))
    for check in CHECKS:
        mark = "-" if check.key == "syscall" else "+"
        assert [line for line in lines if line.startswith(f"  {mark} {check.label}")]
    assert any(line.endswith("no way  (Linux needs it)") for line in lines)
    assert lines[-1].startswith("verdict: runs small guests only")


def test_a_host_without_kvm_still_gets_a_table() -> None:
    patient = Examination(Verdict(Level.NONE, "none"), {**found().host, "cpu": ""})
    lines = list(cli_doctor.table(patient, {}))
    assert lines[0] == "unknown CPU, Linux 6.1"
    assert lines[-1] == "verdict: none"


def test_marks_are_words_where_the_terminal_knows_no_unicode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open(tmp_path / "out", "w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli_doctor._marks()[True] == "yes"


def test_json_names_every_check_and_keeps_its_answer() -> None:
    told = found(popcnt="#UD").as_json()
    assert set(told["checks"]) == {check.key for check in CHECKS}
    assert told["checks"]["popcnt"] == {"ok": False, "detail": "#UD", "linux_needs_it": True}
    assert told["capabilities"] == {"pit2": 1}


# ── the memory ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An empty cache, and a KVM that answers "because"; the list grows when it is asked."""
    times: list[str] = []

    def ask() -> str:
        times.append("asked")
        return "because"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "_ask", ask)
    return times


def test_the_host_is_asked_once(asked: list[str]) -> None:
    assert [doctor.why_not_linux() for _ in range(3)] == ["because"] * 3
    assert len(asked) == 1


def test_that_linux_runs_is_remembered_too(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ask", lambda: "")
    assert doctor.why_not_linux() is None
    monkeypatch.setattr(doctor, "_ask", lambda: "asked again")
    assert doctor.why_not_linux() is None


@pytest.mark.parametrize("change", ["cpu_model", "__version__"])
def test_another_host_or_pykvm_is_asked_again(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    doctor.why_not_linux()
    monkeypatch.setattr(doctor, change, (lambda: "other") if change == "cpu_model" else "9.9")
    doctor.why_not_linux()
    assert len(asked) == 2


def test_a_damaged_memory_is_asked_again(asked: list[str]) -> None:
    doctor.why_not_linux()
    Path(doctor._cache_file()).write_bytes(b"\xff\xfe\0")
    assert doctor.why_not_linux() == "because"
    assert len(asked) == 2


def test_without_a_cache_the_answer_is_the_same(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert doctor.why_not_linux() == "because"


def test_boot_refuses_linux_on_such_a_host_and_names_the_way_out(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_boot, "is_linux", lambda _kernel: True)
    assert cli.main(["boot", __file__]) == 125
    assert re.match(r"pykvm: because.*pykvm lab", capsys.readouterr().err)


def test_boot_on_any_host_asks_nothing(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_boot, "is_linux", lambda _kernel: True)
    monkeypatch.setattr(cli_boot, "boot", lambda *_: 7)
    assert cli.main(["boot", "--any-host", __file__]) == 7
    assert asked == []


# ── the probes ───────────────────────────────────────────────────────────────────────────────────


def test_probes_are_linked_where_they_are_loaded_and_fit() -> None:
    image = Path(guest_programs.path("probe")).read_bytes()
    end = layout.PROBES + len(image)
    assert end <= layout.START_INFO
    assert all(layout.PROBES < address < end for address in _addresses(image).values())


def test_answers_have_the_same_values_on_both_sides() -> None:
    source = (SOURCE / "probe.S").read_text()
    defined = dict(re.findall(r"^#define (\w+)\s+(0x\w+|\d+)", source, re.MULTILINE))
    here = {code.name: code.value for code in Code}
    here |= {"EXCEPTION": EXCEPTION, "INTERRUPT": INTERRUPT, "PAGE_TABLES": layout.PAGE_TABLES}
    here |= {"MMIO_HOLE": layout.MMIO_HOLE, "LAPIC": layout.LAPIC}
    assert {name: int(defined[name], 0) for name in here} == here


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Code.YES, "yes"),
        (Code.NOT_RING0, "does not enter ring 0"),
        (EXCEPTION + 6, "#UD"),
        (EXCEPTION + 29, "exception 29"),
        (INTERRUPT + 0x20, "interrupt 0x20"),
        (0x99, "answer 0x99"),
        (None, "triple fault"),
    ],
)
def test_an_answer_has_words(value: int | None, text: str) -> None:
    assert Answer(value, "triple fault", None).text == text
