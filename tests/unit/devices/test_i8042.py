"""The keyboard controller: resets, and answers that let a probe finish at once."""

from __future__ import annotations

import pytest

from pykvm.devices.i8042 import COMMAND, DATA, I8042, QUEUE_LIMIT, Command, Config, Status


class Board:
    """A controller and what it did to the machine."""

    def __init__(self) -> None:
        self.resets = 0
        self.levels: list[int] = []
        self.i8042 = I8042(self.reset, self.levels.append)

    def reset(self) -> None:
        self.resets += 1

    def command(self, command: int, *parameter: int) -> None:
        self.i8042.write(COMMAND, 1, command)
        for byte in parameter:
            self.i8042.write(DATA, 1, byte)

    def drain(self) -> list[int]:
        """All bytes of the output buffer, as a driver polls for them."""
        taken = []
        while self.i8042.read(COMMAND, 1) & Status.OUTPUT_FULL:
            taken.append(self.i8042.read(DATA, 1))
        return taken


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.mark.parametrize("command", [0xFE, 0xF0])
def test_pulsing_line_zero_resets(board: Board, command: int) -> None:
    board.command(command)
    assert board.resets == 1


def test_pulsing_other_lines_does_not_reset(board: Board) -> None:
    board.command(0xFD)
    board.command(0xFF)
    assert board.resets == 0


def test_the_output_port_resets_when_bit_0_is_cleared(board: Board) -> None:
    board.command(Command.WRITE_OUTPUT_PORT, 0x03)
    assert board.resets == 0
    board.command(Command.WRITE_OUTPUT_PORT, 0x02)
    assert board.resets == 1


def test_an_idle_controller_is_ready_for_commands_and_has_no_data(board: Board) -> None:
    assert board.i8042.read(COMMAND, 1) & 0b11 == 0
    assert board.i8042.read(DATA, 1) == 0


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (Command.SELF_TEST, 0x55),
        (Command.TEST_KEYBOARD, 0x00),
        (Command.TEST_AUX, 0x01),
        (Command.READ_OUTPUT_PORT, 0x03),
    ],
)
def test_controller_commands_answer_one_byte(board: Board, command: int, answer: int) -> None:
    board.command(command)
    assert board.drain() == [answer]


def test_the_configuration_is_kept(board: Board) -> None:
    board.command(Command.WRITE_CONFIG, Config.TRANSLATE)
    board.command(Command.DISABLE_KEYBOARD)
    board.command(Command.READ_CONFIG)
    assert board.drain() == [Config.TRANSLATE | Config.KEYBOARD_DISABLED]


@pytest.mark.parametrize(
    ("byte", "answer"),
    [(0xFF, [0xFA, 0xAA]), (0xF2, [0xFA, 0xAB, 0x83]), (0xEE, [0xEE]), (0xED, [0xFA])],
)
def test_the_keyboard_answers(board: Board, byte: int, answer: list[int]) -> None:
    board.i8042.write(DATA, 1, byte)
    assert board.drain() == answer


def test_no_mouse_answers(board: Board) -> None:
    board.command(Command.WRITE_AUX, 0xFF)
    assert board.i8042.read(COMMAND, 1) & Status.AUX_OUTPUT
    assert board.drain() == [0xFE]
    board.command(Command.LOOP_AUX, 0x5A)
    assert not board.i8042.read(COMMAND, 1) & Status.AUX_OUTPUT


def test_each_keyboard_byte_is_an_edge_of_its_own(board: Board) -> None:
    board.i8042.write(DATA, 1, 0xFF)
    assert board.levels == [1]
    board.i8042.read(DATA, 1)
    assert board.levels == [1, 0, 1]
    board.i8042.read(DATA, 1)
    assert board.levels == [1, 0, 1, 0]


def test_no_interrupt_while_it_is_disabled(board: Board) -> None:
    board.command(Command.WRITE_CONFIG, 0)
    board.i8042.write(DATA, 1, 0xFF)
    assert board.levels == []


def test_a_guest_that_never_reads_does_not_grow_the_queue(board: Board) -> None:
    for _ in range(1000):
        board.i8042.write(DATA, 1, 0xFF)
    assert len(board.drain()) == QUEUE_LIMIT
