"""The stub's answers, from a target that is made up; and what no client may bring about."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.debug.breakpoints import BreakpointError, Kind
from pykvm.debug.debuggee import EFAULT, TargetError
from pykvm.debug.gdbstub import Stub
from pykvm.debug.rsp import PACKET_SIZE, frame


class FakeTarget:
    """Two threads, four registers of 4 bytes, 64 KiB of memory at 0x1000."""

    def __init__(self) -> None:
        self.registers = {thread: bytearray(16) for thread in (1, 2)}
        self.memory = bytearray(0x10000)
        self.log: list[object] = []

    def threads(self) -> tuple[int, int]:
        return 1, 2

    def thread_state(self, thread: int) -> str:
        return ("one", "two")[thread - 1]

    def description(self) -> bytes:
        return b"<target>" + b"}#$*" * 100 + b"</target>"

    def read_registers(self, thread: int) -> bytes:
        return bytes(self.registers[thread])

    def write_registers(self, thread: int, data: bytes) -> None:
        if len(data) != 16:
            raise ValueError
        self.registers[thread][:] = data

    def read_register(self, thread: int, number: int) -> bytes:
        if number > 3:
            raise IndexError
        return bytes(self.registers[thread][4 * number : 4 * number + 4])

    def write_register(self, thread: int, number: int, data: bytes) -> None:
        if number > 3 or len(data) != 4:
            raise ValueError
        self.registers[thread][4 * number : 4 * number + 4] = data

    def read_memory(self, thread: int, address: int, size: int, physical: bool) -> bytes:
        self.log.append(("read", physical))
        at = address - 0x1000
        return bytes(self.memory[at : at + size]) if at >= 0 else b""

    def write_memory(self, thread: int, address: int, data: bytes, physical: bool) -> None:
        at = address - 0x1000
        if not 0 <= at <= len(self.memory) - len(data):
            raise TargetError(EFAULT)
        self.memory[at : at + len(data)] = data

    def insert(self, thread: int, kind: Kind, address: int, length: int) -> None:
        if address == 0xBAD:
            raise BreakpointError("no room # here")
        self.log.append(("insert", kind, address, length))

    def remove(self, kind: Kind, address: int, length: int) -> None:
        self.log.append(("remove", kind, address, length))

    def resume(self, plan: Mapping[int, bool], ranges: Mapping[int, range]) -> None:
        self.log.append(("resume", dict(plan), *ranges.items()))

    def interrupt(self) -> None:
        self.log.append("interrupt")

    def monitor(self, thread: int, command: str) -> str:
        return f"{thread}: {command}\n"

    def detach(self) -> None:
        self.log.append("detach")

    def kill(self) -> None:
        self.log.append("kill")

    def stop_reply(self, swbreak: bool, hwbreak: bool) -> bytes:
        return b"T05thread:1;" + (b"swbreak:;" if swbreak else b"")


@pytest.fixture
def target() -> FakeTarget:
    return FakeTarget()


@pytest.fixture
def stub(target: FakeTarget) -> Stub:
    return Stub(target)


def test_features_are_offered_with_the_packet_size(stub: Stub) -> None:
    reply = stub.handle(b"qSupported:multiprocess+;swbreak+") or b""
    assert f"PacketSize={PACKET_SIZE:x}".encode() in reply.split(b";")
    assert {b"QStartNoAckMode+", b"swbreak+", b"qXfer:features:read+"} <= set(reply.split(b";"))


def test_stop_reason_is_told_only_to_a_gdb_that_knows_it(stub: Stub) -> None:
    assert stub.handle(b"?") == b"T05thread:1;"
    stub.handle(b"qSupported:swbreak+")
    assert stub.handle(b"?") == b"T05thread:1;swbreak:;"


def test_what_is_unknown_gets_the_empty_reply(stub: Stub) -> None:
    for packet in (b"", b"vMustReplyEmpty", b"R00", b"!", b"vFile:setfs:0", b"QNonStop:1", b"j"):
        assert stub.handle(packet) == b""


def test_registers_are_those_of_the_thread_chosen(stub: Stub, target: FakeTarget) -> None:
    assert stub.handle(b"Hg2") == b"OK"
    assert stub.handle(b"P1=78563412") == b"OK"
    assert stub.handle(b"p1") == b"78563412"
    assert stub.handle(b"Hg1") == b"OK"
    assert stub.handle(b"p1") == b"00000000"
    assert stub.handle(b"G" + b"11" * 16) == b"OK"
    assert stub.handle(b"g") == b"11" * 16
    assert target.registers[2][4:8] == b"\x78\x56\x34\x12"


def test_a_range_is_stepped_through_by_the_thread_it_is_for() -> None:
    target = FakeTarget()
    assert Stub(target).handle(b"vCont;r1000,1008:2;c") is None
    assert target.log == [("resume", {1: False, 2: True}, (2, range(0x1000, 0x1008)))]


@pytest.mark.parametrize("packet", [b"vCont;r", b"vCont;r1000", b"vCont;r1000,zz:1"])
def test_a_range_that_is_none_is_refused(packet: bytes) -> None:
    assert Stub(FakeTarget()).handle(packet) == b"E16"


@pytest.mark.parametrize("packet", [b"Hg3", b"T7", b"Hgff", b"vCont;c:9"])
def test_a_thread_that_is_not_there_is_an_error(stub: Stub, packet: bytes) -> None:
    assert stub.handle(packet) == b"E03"


def test_memory_is_read_and_written_in_both_forms(stub: Stub) -> None:
    assert stub.handle(b"M1000,3:414243") == b"OK"
    assert stub.handle(b"X1003,2:#}") == b"OK"
    assert stub.handle(b"m1000,5") == b"414243237d"
    assert stub.handle(b"x1000,5") == b"bABC}\x03}]"


def test_memory_that_is_not_there_is_an_error(stub: Stub) -> None:
    assert stub.handle(b"m10,4") == b"E0e"
    assert stub.handle(b"M10,1:00") == b"E0e"


def test_physical_memory_is_chosen_as_qemu_has_it(stub: Stub, target: FakeTarget) -> None:
    assert stub.handle(b"qqemu.PhyMemMode") == b"0"
    assert stub.handle(b"Qqemu.PhyMemMode:1") == b"OK"
    assert stub.handle(b"qqemu.PhyMemMode") == b"1"
    stub.handle(b"m1000,1")
    assert target.log == [("read", True)]


@pytest.mark.parametrize(
    ("packet", "plan"),
    [
        (b"c", {1: False, 2: False}),
        (b"s", {1: True, 2: False}),
        (b"vCont;c", {1: False, 2: False}),
        (b"vCont;s:2", {2: True}),
        (b"vCont;s:1;c", {1: True, 2: False}),
        (b"vCont;S05:2;C05:-1", {1: False, 2: True}),
    ],
)
def test_threads_go_on_as_asked_and_no_reply_comes_before_the_stop(
    stub: Stub, target: FakeTarget, packet: bytes, plan: dict[int, bool]
) -> None:
    assert stub.handle(packet) is None
    assert target.log == [("resume", plan)]
    stub.interrupt()
    assert target.log[-1] == "interrupt"
    assert stub.tell().startswith(b"T05")
    stub.interrupt()  # stopped already
    assert len(target.log) == 2


def test_breakpoints_of_every_kind_but_reads(stub: Stub, target: FakeTarget) -> None:
    for kind in (0, 1, 2, 4):
        assert stub.handle(b"Z%d,ffffffff81000000,1" % kind) == b"OK"
        assert stub.handle(b"z%d,ffffffff81000000,1" % kind) == b"OK"
    assert stub.handle(b"Z3,1000,4") == b""  # gdb then takes an access watchpoint
    assert ("insert", Kind.ACCESS, 0xFFFF_FFFF_8100_0000, 1) in target.log


def test_a_breakpoint_refused_says_why(stub: Stub) -> None:
    assert stub.handle(b"Z0,bad,1") == b"E.no room }\x03 here"


def test_description_and_threads_come_in_pieces(stub: Stub, target: FakeTarget) -> None:
    from pykvm.debug.rsp import unescape

    document, offset = b"", 0
    while True:
        reply = stub.handle(b"qXfer:features:read:target.xml:%x,40" % offset) or b""
        document += unescape(reply[1:])
        offset = len(document)
        if reply[:1] == b"l":
            break
    assert document == target.description()
    assert b'<thread id="2"' in (stub.handle(b"qXfer:threads:read::0,400") or b"")


def test_monitor_answers_in_hexadecimal(stub: Stub) -> None:
    assert bytes.fromhex((stub.handle(b"qRcmd," + b"pt 0x10".hex().encode()) or b"").decode()) == (
        b"1: pt 0x10\n"
    )


def test_detach_and_kill_end_the_conversation(target: FakeTarget) -> None:
    stub = Stub(target)
    assert (stub.handle(b"D"), stub.finished) == (b"OK", True)
    stub = Stub(target)
    assert (stub.handle(b"k"), stub.finished) == (None, True)
    stub = Stub(target)
    assert (stub.handle(b"vKill;1"), stub.finished) == (b"OK", True)
    assert target.log == ["detach", "kill", "kill"]


COMMANDS = st.sampled_from([bytes([c]) for c in b"?cCDgGHkmMpPqQsSTvxXzZ!R"])
WORDS = st.sampled_from(
    [b"Supported:", b"Xfer:features:read:", b"Xfer:threads:read::", b"Rcmd,", b"Cont;", b"Cont;s:",
     b"0,", b"1,1000,1", b",", b":", b";", b"=", b"-1", b"ffffffffffffffff", b"g", b"1000,",
     b"ffff", b"qemu.PhyMemMode:", b"ThreadExtraInfo,", b"target.xml:", b"Kill", b"StartNoAckMode"]
)  # fmt: skip


@given(st.lists(st.tuples(COMMANDS, st.lists(WORDS | st.binary(max_size=8))), max_size=20))
def test_no_packet_raises_and_every_reply_fits(
    packets: list[tuple[bytes, list[bytes]]],
) -> None:
    stub = Stub(FakeTarget())
    for command, words in packets:
        reply = stub.handle(command + b"".join(words))
        if stub.running:
            assert reply is None
            reply = stub.tell()
        if reply is not None:
            assert len(frame(reply)) <= PACKET_SIZE + 4
            assert not set(reply) & set(b"#$")
