"""Exit codes as docker and timeout(1) have taught them."""

from __future__ import annotations

import pytest

from pykvm.outcome import CODES, Reason


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.POWEROFF, 0),
        (Reason.REBOOT, 0),
        (Reason.QUIT, 0),
        (Reason.PANIC, 255),
        (Reason.TRIPLE_FAULT, 255),
        (Reason.HALTED, 255),
        (Reason.HUNG, 255),
        (Reason.TIMEOUT, 124),
        (Reason.FAIL_ENTRY, 125),
        (Reason.INTERNAL_ERROR, 125),
    ],
)
def test_reason_has_its_exit_code(reason: Reason, code: int) -> None:
    assert CODES[reason] == code


def test_every_reason_has_a_code_or_brings_its_own() -> None:
    assert set(Reason) - set(CODES) == {Reason.EXIT, Reason.SIGNAL}
