"""The PM1a registers: power-off and the power button."""

from __future__ import annotations

import pytest

from pykvm.devices import pm


class Board:
    """A PM block and what it did to the machine."""

    def __init__(self) -> None:
        self.poweroffs = 0
        self.levels: list[int] = []
        self.pm = pm.PowerManagement(self.poweroff, self.levels.append)

    def poweroff(self) -> None:
        self.poweroffs += 1


@pytest.fixture
def board() -> Board:
    return Board()


def test_the_well_known_0x2000_powers_off(board: Board) -> None:
    board.pm.write(pm.CONTROL, 2, 0x2000)
    assert board.poweroffs == 1


def test_slp_en_with_another_sleep_type_does_nothing(board: Board) -> None:
    board.pm.write(pm.CONTROL, 2, pm.SLP_EN | 3 << pm.SLP_TYP_SHIFT)
    assert board.poweroffs == 0


def test_sleep_type_without_slp_en_does_nothing(board: Board) -> None:
    board.pm.write(pm.CONTROL, 2, pm.SLP_TYP_S5 << pm.SLP_TYP_SHIFT)
    assert board.poweroffs == 0


def test_acpi_mode_is_always_on_and_slp_en_reads_as_zero(board: Board) -> None:
    assert board.pm.read(pm.CONTROL, 2) == pm.SCI_EN
    board.pm.write(pm.CONTROL, 2, pm.SLP_EN | 5 << pm.SLP_TYP_SHIFT)
    assert board.pm.read(pm.CONTROL, 2) == pm.SCI_EN | 5 << pm.SLP_TYP_SHIFT


def test_the_power_button_raises_the_sci_until_its_status_is_cleared(board: Board) -> None:
    board.pm.write(pm.ENABLE, 2, pm.PWRBTN)
    board.pm.press_power_button()
    assert board.levels == [1]
    assert board.pm.read(pm.STATUS, 2) == pm.PWRBTN
    board.pm.write(pm.STATUS, 2, pm.PWRBTN)
    assert board.levels == [1, 0]
    assert board.pm.read(pm.STATUS, 2) == 0


def test_a_press_before_the_guest_enabled_it_is_not_lost(board: Board) -> None:
    board.pm.press_power_button()
    assert board.levels == []
    board.pm.write(pm.ENABLE, 2, pm.PWRBTN)
    assert board.levels == [1]


def test_status_and_enable_can_be_written_as_one_double_word(board: Board) -> None:
    board.pm.press_power_button()
    board.pm.write(pm.STATUS, 4, pm.PWRBTN << 16 | 0xFFFF)
    assert board.pm.read(pm.STATUS, 4) == pm.PWRBTN << 16


def test_restore_raises_the_sci_again() -> None:
    old, new = Board(), Board()
    old.pm.write(pm.ENABLE, 2, pm.PWRBTN)
    old.pm.press_power_button()
    new.pm.restore(old.pm.state())
    assert new.levels == [1]


def test_reset_lowers_the_sci(board: Board) -> None:
    board.pm.write(pm.ENABLE, 2, pm.PWRBTN)
    board.pm.press_power_button()
    board.pm.reset()
    assert board.levels == [1, 0]


def test_an_event_raises_the_sci_once_it_is_enabled_and_until_it_is_cleared(board: Board) -> None:
    board.pm.raise_event(pm.GPE_NEW_ID)
    assert board.levels == []
    board.pm.write(pm.GPE_ENABLE, 1, 0xFF)
    assert board.levels == [1]
    assert board.pm.read(pm.GPE_ENABLE, 1) == board.pm.read(pm.GPE_STATUS, 1) == 1
    board.pm.write(pm.GPE_STATUS, 1, 1)
    assert board.levels == [1, 0]


def test_an_event_under_way_survives_a_snapshot() -> None:
    old, new = Board(), Board()
    old.pm.write(pm.GPE_ENABLE, 1, 1)
    old.pm.raise_event(pm.GPE_NEW_ID)
    new.pm.restore(old.pm.state())
    assert new.levels == [1]
    assert new.pm.read(pm.GPE_STATUS, 1) == 1
