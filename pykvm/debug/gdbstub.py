"""The commands of the GDB Remote Serial Protocol, carried out on a `Target`.

Reached from `server` with each packet that has arrived; knows no socket and no machine, so that
tests can be as hostile as they like. Source: "Debugging with GDB", appendix E "GDB Remote Serial
Protocol". All-stop mode only; a thread is a vCPU, thread 1 is vCPU 0. ::

    gdb ── $m ffffffff81000000,10#.. ──> server ── payload ──> Stub.handle ──> Target.read_memory
        <── $554889e5…#..           <── reply   <──
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from pykvm.debug.breakpoints import BreakpointError, Kind
from pykvm.debug.rsp import PACKET_SIZE, escape
from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# Error numbers in replies; gdb shows them and asks no further. Linux' own values.
EFAULT: Final = 14
EINVAL: Final = 22
ESRCH: Final = 3

ALL: Final = -1  # thread ids of a packet: every thread, and any
ANY: Final = 0
# What one packet may ask for: each byte takes two characters of an answer, or up to two escaped.
READ_MAX: Final = (PACKET_SIZE - 8) // 2

FEATURES: Final = (
    f"PacketSize={PACKET_SIZE:x}",
    "QStartNoAckMode+",
    "qXfer:features:read+",
    "qXfer:threads:read+",
    "vContSupported+",
    "swbreak+",
    "hwbreak+",
    "binary-upload+",
    "qqemu.PhyMemMode+",
)


class TargetError(PykvmError):
    """The target cannot do that; `number` is what gdb is told."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text or f"error {number}")
        self.number = number


class Target(Protocol):
    """What is debugged. Threads count from 1. Methods raise `TargetError`."""

    def threads(self) -> Iterable[int]:
        """The threads there are."""

    def thread_state(self, thread: int) -> str:
        """What a thread is called, and does."""

    def description(self) -> bytes:
        """target.xml."""

    def read_registers(self, thread: int) -> bytes: ...
    def write_registers(self, thread: int, data: bytes) -> None: ...
    def read_register(self, thread: int, number: int) -> bytes: ...
    def write_register(self, thread: int, number: int, data: bytes) -> None: ...
    def read_memory(self, thread: int, address: int, size: int, physical: bool) -> bytes:
        """Up to `size` bytes, fewer at the end of what is mapped."""

    def write_memory(self, thread: int, address: int, data: bytes, physical: bool) -> None: ...
    def insert(self, thread: int, kind: Kind, address: int, length: int) -> None:
        """Set a breakpoint. Raises `BreakpointError` too."""

    def remove(self, kind: Kind, address: int, length: int) -> None: ...
    def resume(self, plan: Mapping[int, bool]) -> None:
        """Let these threads go on, those with a true value for one step."""

    def interrupt(self) -> None:
        """Stop; `Stub.tell` is called when it has."""

    def monitor(self, thread: int, command: str) -> str:
        """Answer a ``monitor`` command, in lines."""

    def detach(self) -> None: ...
    def kill(self) -> None: ...
    def stop_reply(self, swbreak: bool, hwbreak: bool) -> bytes:
        """Why it stands still, as packet T has it."""


class Stub:
    """One gdb, talked to. `handle` returns the reply to a packet, None when there is none yet."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._thread = 1  # for g, m, p, Z and monitor; gdb chooses it with H
        self._physical = False
        self._swbreak = self._hwbreak = False  # whether gdb understands these stop reasons
        self.no_ack = False  # gdb wants no + and - any more
        self.running = False  # a stop reply is owed
        self.finished = False  # gdb has detached or killed: hang up

    def handle(self, packet: bytes) -> bytes | None:
        """Carry out one packet. Never raises for what a client may send."""
        if self.running:
            return None  # gdb waits for a stop in all-stop mode; who does not is not heard
        command = chr(packet[0]) if packet else ""
        action = _COMMANDS.get(command)
        if action is None:
            return b""  # "the packet is not supported"
        try:
            return action(self, packet[1:])
        except TargetError as error:
            return b"E%02x" % error.number
        except (ValueError, IndexError, OverflowError):
            return b"E%02x" % EINVAL
        except OSError as error:  # KVM's
            return b"E%02x" % (min(error.errno or EINVAL, 255))

    def tell(self) -> bytes:
        """The stop reply: the target has stopped."""
        self.running = False
        return self._target.stop_reply(self._swbreak, self._hwbreak)

    def interrupt(self) -> None:
        """Ctrl-C."""
        if self.running:
            self._target.interrupt()

    # ── registers and memory ─────────────────────────────────────────────────────────────────

    def _read_registers(self, _: bytes) -> bytes:
        return self._target.read_registers(self._thread).hex().encode()

    def _write_registers(self, text: bytes) -> bytes:
        self._target.write_registers(self._thread, _unhex(text))
        return b"OK"

    def _read_register(self, text: bytes) -> bytes:
        return self._target.read_register(self._thread, _number(text)).hex().encode()

    def _write_register(self, text: bytes) -> bytes:
        number, _, value = text.partition(b"=")
        self._target.write_register(self._thread, _number(number), _unhex(value))
        return b"OK"

    def _read(self, text: bytes) -> bytes:
        address, size = _range(text)
        size = min(size, READ_MAX)
        data = self._target.read_memory(self._thread, address, size, self._physical)
        if size and not data:
            raise TargetError(EFAULT)
        return data

    def _read_memory(self, text: bytes) -> bytes:
        return self._read(text).hex().encode()

    def _read_binary(self, text: bytes) -> bytes:
        return b"b" + escape(self._read(text))

    def _write_memory(self, text: bytes) -> bytes:
        place, _, data = text.partition(b":")
        return self._write(place, _unhex(data))

    def _write_binary(self, text: bytes) -> bytes:
        place, _, data = text.partition(b":")
        return self._write(place, data)

    def _write(self, place: bytes, data: bytes) -> bytes:
        address, size = _range(place)
        if len(data) != size:
            raise ValueError("not as many bytes as announced")
        self._target.write_memory(self._thread, address, data, self._physical)
        return b"OK"

    # ── breakpoints ──────────────────────────────────────────────────────────────────────────

    def _insert(self, text: bytes) -> bytes:
        kind, address, length = _breakpoint(text)
        if kind is Kind.READ:
            return b""  # gdb then makes one of an access watchpoint
        try:
            self._target.insert(self._thread, kind, address, length)
        except BreakpointError as error:
            # gdb 13 shows no text but for this form ("E.": appendix E.3, "Standard Replies").
            return b"E." + _printable(str(error))
        return b"OK"

    def _remove(self, text: bytes) -> bytes:
        self._target.remove(*_breakpoint(text))
        return b"OK"

    # ── going on and stopping ────────────────────────────────────────────────────────────────

    def _why(self, _: bytes) -> bytes:
        return self.tell()

    def _resume(self, plan: dict[int, bool]) -> None:
        self.running = True
        try:
            self._target.resume(plan)
        except BaseException:
            self.running = False
            raise

    def _continue(self, text: bytes) -> None:
        self._all_from(text, step=False)

    def _step(self, text: bytes) -> None:
        self._all_from(text, step=True)

    def _signal_continue(self, text: bytes) -> None:
        self._all_from(text.partition(b";")[2], step=False)

    def _signal_step(self, text: bytes) -> None:
        self._all_from(text.partition(b";")[2], step=True)

    def _all_from(self, text: bytes, step: bool) -> None:
        """The old packets: the current thread steps, all others go on."""
        if text:
            raise TargetError(EINVAL, "going on from another address: set the register instead")
        plan = dict.fromkeys(self._target.threads(), False)
        plan[self._thread] = step
        self._resume(plan)

    def _multi(self, text: bytes) -> bytes | None:
        """The v packets: vCont, and those whose names say what they are."""
        if text == b"Cont?":
            return b"vCont;c;C;s;S"
        if text.startswith(b"Cont;"):
            plan = self._vcont(text[5:])
            if not plan:
                raise TargetError(ESRCH)
            self._resume(plan)
            return None
        if text.startswith(b"Kill"):
            self._kill(b"")
            return b"OK"
        return b""  # vMustReplyEmpty among them

    def _vcont(self, text: bytes) -> dict[int, bool]:
        """Which threads go on and how: for each one the leftmost action that matches counts."""
        threads = self._target.threads()
        plan: dict[int, bool] = {}
        for action in text.split(b";"):
            what, _, thread = action.partition(b":")
            if what[:1] not in (b"c", b"C", b"s", b"S"):
                raise ValueError("an action that vCont? does not offer")
            chosen = _thread(thread) if thread else ALL
            if chosen not in (ALL, ANY) and chosen not in threads:
                raise TargetError(ESRCH)
            for each in threads if chosen == ALL else [chosen or self._thread]:
                plan.setdefault(each, what[:1] in (b"s", b"S"))
        return plan

    def _detach(self, _: bytes) -> bytes:
        self.finished = True
        self._target.detach()
        return b"OK"

    def _kill(self, _: bytes) -> None:
        self.finished = True
        self._target.kill()

    # ── threads ──────────────────────────────────────────────────────────────────────────────

    def _choose(self, text: bytes) -> bytes:
        thread = _thread(text[1:])
        if thread in (ALL, ANY):
            return b"OK"
        if thread not in self._target.threads():
            raise TargetError(ESRCH)
        if text[:1] == b"g":
            self._thread = thread
        return b"OK"

    def choose(self, thread: int) -> None:
        """After a stop gdb means the thread that stopped until it says otherwise."""
        self._thread = thread

    def _alive(self, text: bytes) -> bytes:
        if _thread(text) not in self._target.threads():
            raise TargetError(ESRCH)
        return b"OK"

    # ── questions ────────────────────────────────────────────────────────────────────────────

    def _query(self, text: bytes) -> bytes:
        name, separator, rest = _split(text)
        match name:
            case b"Supported":
                self._swbreak = b"swbreak+" in rest.split(b";")
                self._hwbreak = b"hwbreak+" in rest.split(b";")
                return ";".join(FEATURES).encode()
            case b"Attached":
                return b"1"  # so that gdb detaches when it quits
            case b"C":
                return b"QC%x" % self._thread
            case b"fThreadInfo":
                return b"m" + b",".join(b"%x" % thread for thread in self._target.threads())
            case b"sThreadInfo":
                return b"l"
            case b"ThreadExtraInfo":
                if (thread := _thread(rest)) not in self._target.threads():
                    raise TargetError(ESRCH)
                return self._target.thread_state(thread).encode().hex().encode()
            case b"Symbol":
                return b"OK"
            case b"Xfer":
                return self._transfer(rest)
            case b"Rcmd" if separator == b",":
                command = _unhex(rest).decode(errors="replace")
                answer = self._target.monitor(self._thread, command)
                return answer.encode()[:READ_MAX].hex().encode() or b"OK"
            case b"qemu.PhyMemMode":
                return b"%d" % self._physical
            case _:
                return b""

    def _set(self, text: bytes) -> bytes:
        name, _, rest = _split(text)
        match name:
            case b"StartNoAckMode":
                self.no_ack = True
                return b"OK"
            case b"qemu.PhyMemMode":
                self._physical = bool(_number(rest))
                return b"OK"
            case _:
                return b""

    def _transfer(self, text: bytes) -> bytes:
        """qXfer:OBJECT:read:ANNEX:OFFSET,LENGTH: part of a document."""
        kind, operation, annex, place = text.split(b":")
        if operation != b"read":
            return b""
        if (kind, annex) == (b"features", b"target.xml"):
            document = self._target.description()
        elif (kind, annex) == (b"threads", b""):
            document = self._threads_document()
        else:
            return b"E00" if kind == b"features" else b""
        offset, length = _range(place)
        # Escapes may double what is sent.
        piece = document[offset : offset + min(length, READ_MAX)]
        return (b"m" if offset + len(piece) < len(document) else b"l") + escape(piece)

    def _threads_document(self) -> bytes:
        rows = "".join(
            f'<thread id="{thread:x}" core="{thread - 1}" name="vCPU {thread - 1}">'
            f"{self._target.thread_state(thread)}</thread>"
            for thread in self._target.threads()
        )
        return f'<?xml version="1.0"?><threads>{rows}</threads>'.encode()


_COMMANDS: Final[dict[str, Callable[[Stub, bytes], bytes | None]]] = {
    "?": Stub._why,
    "c": Stub._continue,
    "C": Stub._signal_continue,
    "D": Stub._detach,
    "g": Stub._read_registers,
    "G": Stub._write_registers,
    "H": Stub._choose,
    "k": Stub._kill,
    "m": Stub._read_memory,
    "M": Stub._write_memory,
    "p": Stub._read_register,
    "P": Stub._write_register,
    "q": Stub._query,
    "Q": Stub._set,
    "s": Stub._step,
    "S": Stub._signal_step,
    "T": Stub._alive,
    "v": Stub._multi,
    "x": Stub._read_binary,
    "X": Stub._write_binary,
    "z": Stub._remove,
    "Z": Stub._insert,
}


def _number(text: bytes) -> int:
    """A hexadecimal number as the protocol has it: digits and nothing else, 64 bits at most."""
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", text):
        raise ValueError("not a hexadecimal number")
    return int(text, 16)


def _thread(text: bytes) -> int:
    return ALL if text == b"-1" else _number(text)


def _unhex(text: bytes) -> bytes:
    if not re.fullmatch(rb"(?:[0-9a-fA-F]{2})*", text):
        raise ValueError("not hexadecimal bytes")
    return bytes.fromhex(text.decode())


def _range(text: bytes) -> tuple[int, int]:
    """ADDRESS,LENGTH."""
    address, _, length = text.partition(b",")
    return _number(address), _number(length)


def _breakpoint(text: bytes) -> tuple[Kind, int, int]:
    """TYPE,ADDRESS,KIND; conditions and commands may follow, which gdb sends only when offered."""
    kind, address, length = text.partition(b";")[0].split(b",")
    return Kind(_number(kind)), _number(address), _number(length)


def _split(text: bytes) -> tuple[bytes, bytes, bytes]:
    """A query's name, what ends it, and the rest."""
    match = re.match(rb"([^:,]*)([:,]?)(.*)", text, re.DOTALL)
    assert match is not None  # it matches anything
    return match[1], match[2], match[3]


def _printable(text: str) -> bytes:
    return escape(text.encode("ascii", "replace"))
