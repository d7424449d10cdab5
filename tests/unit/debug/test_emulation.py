"""The trap flag is taken out of what a step has pushed, and of nothing else."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.debug.emulation import PUSHF, TF, Emulation
from pykvm.memory import GuestMemory

CODE, STACK, CS = 0x1000, 0x2000, 0x10
NO_PAGING = SimpleNamespace(cr0=1, cr3=0, cr4=0, efer=0)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as memory:
        yield memory


def stepped(memory: GuestMemory, *pushed: int) -> tuple[int, ...]:
    """What is on the stack after a step from CODE has pushed these words there."""
    emulation, registers = Emulation(memory), {"rsp": STACK}
    file: Any = SimpleNamespace(
        vcpu=SimpleNamespace(id=0),
        pc=CODE,
        bits=64,
        get=registers.get,
        structure=lambda _: NO_PAGING,
    )
    emulation.begin(file)
    memory.write(STACK, struct.pack(f"<{len(pushed)}Q", *pushed))
    file.pc = 0x3000
    emulation.clean(file)
    return struct.unpack(f"<{len(pushed)}Q", memory.read(STACK, 8 * len(pushed)))


def test_a_frame_loses_it_also_below_what_the_handler_pushed(memory: GuestMemory) -> None:
    assert stepped(memory, 7, CODE, CS, 0x202 | TF, STACK) == (7, CODE, CS, 0x202, STACK)


def test_what_pushf_pushed_loses_it(memory: GuestMemory) -> None:
    memory.write(CODE, PUSHF)
    assert stepped(memory, 0x202 | TF, 0x202 | TF) == (0x202, 0x202 | TF)


def test_other_words_are_left_alone(memory: GuestMemory) -> None:
    words = (0x202 | TF, CODE + 1, CS, 0x202 | TF, CODE, 1 << 20, 0x202 | TF)
    assert stepped(memory, *words) == words
