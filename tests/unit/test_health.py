"""A panic on the console, a machine that can never run again: found for certain, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._core import lib
from pykvm.health import (
    GRACE_END_S,
    GRACE_S,
    HALT,
    RESTART,
    Health,
    PanicWatch,
    Snapshot,
    kernel_says,
)

PANIC = b"[    1.234567] Kernel panic - not syncing: Attempted to kill init!\n"
END = b"[    1.300000] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---\n"


def watched(*pieces: bytes) -> PanicWatch:
    """A watch that was fed the console's bytes in these pieces."""
    watch, log = PanicWatch(), bytearray()
    for piece in pieces:
        log += piece
        watch.feed(log)
    return watch


@pytest.mark.parametrize(
    "line",
    [
        PANIC,
        b"Kernel panic - not syncing: VFS",
        b"boot\r\n[   12.000001][    T1] Kernel panic - not syncing: VFS",
        b"[ 1234.000001][ C12] Kernel panic - not syncing",
    ],
)
def test_panic_at_the_start_of_a_line_is_seen(line: bytes) -> None:
    assert watched(line).seen


@pytest.mark.parametrize(
    "line",
    [
        b"grep 'Kernel panic - not syncing' /var/log\n",
        b"# echo Kernel panic - not syncing\n",
        b"Kernel panic\n",
        b"[ 1.0 Kernel panic - not syncing\n",
    ],
)
def test_words_about_a_panic_are_none(line: bytes) -> None:
    assert not watched(b"boot\n", line).seen


@given(st.integers(0, len(PANIC)), st.integers(0, len(PANIC)))
def test_panic_is_seen_however_it_comes_in_pieces(one: int, two: int) -> None:
    first, second = sorted((one, two))
    text = b"x\n" + PANIC
    assert watched(text[:first], text[first:second], text[second:]).seen


def test_grace_is_short_once_the_trace_has_ended() -> None:
    assert watched(PANIC).grace_s == GRACE_S
    assert watched(PANIC, b"Call Trace:\n", END).grace_s == GRACE_END_S


def test_end_without_a_panic_means_nothing() -> None:
    assert not watched(END).complete


def test_panic_is_found_after_the_front_of_the_log_was_cut() -> None:
    watch, log = PanicWatch(), bytearray()
    for _ in range(10):
        log += b"a line of output\n"
        dropped = max(0, len(log) - 40)
        del log[:dropped]
        watch.feed(log, dropped)
    assert not watch.seen
    log += PANIC
    watch.feed(log)
    assert watch.seen


def test_linux_last_words_tell_restart_from_halt() -> None:
    restart = b"x\n[    2.0] reboot: Restarting system\n"
    assert kernel_says(restart, *RESTART)
    assert not kernel_says(restart, *HALT)
    assert kernel_says(b"reboot: machine restart", *RESTART)
    assert kernel_says(b"[    2.000000] reboot: System halted", *HALT)
    assert not kernel_says(b"please reboot: Restarting system", *RESTART)


# ── dead machines ────────────────────────────────────────────────────────────────────────────────

RUNNING = lib.KVM_MP_STATE_RUNNABLE
HALTED = lib.KVM_MP_STATE_HALTED
WAITING = lib.KVM_MP_STATE_UNINITIALIZED


def looks(*states: list[Snapshot]) -> list[str]:
    health = Health()
    return [health.check(state) for state in states]


def test_halted_with_interrupts_off_is_dead_at_once() -> None:
    assert looks([Snapshot(HALTED, False, (1,))]) == ["halted"]


def test_halted_with_interrupts_on_may_wake() -> None:
    assert looks(*[[Snapshot(HALTED, True, (1,))]] * 10) == [""] * 10


def test_other_cpus_that_were_never_started_wake_nobody() -> None:
    state = [Snapshot(HALTED, False, (1,)), Snapshot(WAITING, False, (0,))]
    assert looks(state) == ["halted"]


def test_one_cpu_that_runs_keeps_the_machine_alive() -> None:
    state = [Snapshot(HALTED, False, (1,)), Snapshot(RUNNING, True, (2,))]
    assert looks(*[state] * 10) == [""] * 10


def test_deaf_jump_to_itself_is_hung_after_some_looks() -> None:
    state = [Snapshot(RUNNING, False, (1, 2, 3))]
    verdicts = looks(*[state] * (Health.REPEATS + 1))
    assert verdicts == [""] * Health.REPEATS + ["hung"]


def test_deaf_loop_that_computes_is_alive() -> None:
    assert looks(*[[Snapshot(RUNNING, False, (i,))] for i in range(10)]) == [""] * 10


def test_jump_to_itself_with_interrupts_on_is_alive() -> None:
    assert looks(*[[Snapshot(RUNNING, True, (1,))]] * 10) == [""] * 10


def test_deaf_jump_while_another_cpu_works_is_alive() -> None:
    states = [[Snapshot(RUNNING, False, (1,)), Snapshot(RUNNING, False, (i,))] for i in range(10)]
    assert looks(*states) == [""] * 10


def test_any_sign_of_life_starts_the_count_anew() -> None:
    health, state = Health(), [Snapshot(RUNNING, False, (1,))]
    for _ in range(Health.REPEATS):
        assert health.check(state) == ""
    health.forget()
    assert health.check(state) == ""
