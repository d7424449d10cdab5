"""The commands of the GDB Remote Serial Protocol, carried out on a `Target`.

Reached from `server` with each packet that has arrived; knows no socket and no machine, so that
tests can be as hostile as they like. Source: "Debugging with GDB", appendix E "GDB Remote Serial
Protocol". All-stop mode only; a thread is a vCPU, thread 1 is vCPU 0. ::

    gdb ── $m ffffffff81000000,10#.. ──> server ── payload ──> Stub.handle ──> Target.read_memory
        <── $554889e5…#..           <── reply   <──
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pykvm.debug import rspfields as fields
from pykvm.debug.breakpoints import BreakpointError, Kind
from pykvm.debug.debuggee import EFAULT, EINVAL, ESRCH, Target, TargetError
from pykvm.debug.rsp import PACKET_SIZE, escape
from pykvm.debug.rspfields import ALL, ANY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
        self._target.write_registers(self._thread, fields.unhex(text))
        return b"OK"

    def _read_register(self, text: bytes) -> bytes:
        return self._target.read_register(self._thread, fields.number(text)).hex().encode()

    def _write_register(self, text: bytes) -> bytes:
        number, _, value = text.partition(b"=")
        self._target.write_register(self._thread, fields.number(number), fields.unhex(value))
        return b"OK"

    def _read(self, text: bytes) -> bytes:
        address, size = fields.address_and_length(text)
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
        return self._write(place, fields.unhex(data))

    def _write_binary(self, text: bytes) -> bytes:
        place, _, data = text.partition(b":")
        return self._write(place, data)

    def _write(self, place: bytes, data: bytes) -> bytes:
        address, size = fields.address_and_length(place)
        if len(data) != size:
            raise ValueError("not as many bytes as announced")
        self._target.write_memory(self._thread, address, data, self._physical)
        return b"OK"

    # ── breakpoints ──────────────────────────────────────────────────────────────────────────

    def _insert(self, text: bytes) -> bytes:
        kind, address, length = fields.breakpoint_of(text)
        if kind is Kind.READ:
            return b""  # gdb then makes one of an access watchpoint
        try:
            self._target.insert(self._thread, kind, address, length)
        except BreakpointError as error:
            # gdb 13 shows no text but for this form ("E.": appendix E.3, "Standard Replies").
            return b"E." + fields.printable(str(error))
        return b"OK"

    def _remove(self, text: bytes) -> bytes:
        self._target.remove(*fields.breakpoint_of(text))
        return b"OK"

    # ── going on and stopping ────────────────────────────────────────────────────────────────

    def _why(self, _: bytes) -> bytes:
        return self.tell()

    def _resume(self, plan: dict[int, bool], ranges: Mapping[int, range] | None = None) -> None:
        self.running = True
        try:
            self._target.resume(plan, ranges or {})
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
            return b"vCont;c;C;s;S;r"
        if text.startswith(b"Cont;"):
            plan, ranges = self._vcont(text[5:])
            if not plan:
                raise TargetError(ESRCH)
            self._resume(plan, ranges)
            return None
        if text.startswith(b"Kill"):
            self._kill(b"")
            return b"OK"
        return b""  # vMustReplyEmpty among them

    def _vcont(self, text: bytes) -> tuple[dict[int, bool], dict[int, range]]:
        """Which threads go on and how, and those that step through a range: for each one the
        leftmost action that matches counts."""
        threads = self._target.threads()
        plan: dict[int, bool] = {}
        ranges: dict[int, range] = {}
        for action in text.split(b";"):
            what, _, thread = action.partition(b":")
            if what[:1] not in (b"c", b"C", b"s", b"S", b"r"):
                raise ValueError("an action that vCont? does not offer")
            chosen = fields.thread(thread) if thread else ALL
            if chosen not in (ALL, ANY) and chosen not in threads:
                raise TargetError(ESRCH)
            for each in threads if chosen == ALL else [chosen or self._thread]:
                if each not in plan and what[:1] == b"r":
                    ranges[each] = range(*fields.address_and_length(what[1:]))  # START,END
                plan.setdefault(each, what[:1] in (b"s", b"S", b"r"))
        return plan, ranges

    def _detach(self, _: bytes) -> bytes:
        self.finished = True
        self._target.detach()
        return b"OK"

    def _kill(self, _: bytes) -> None:
        self.finished = True
        self._target.kill()

    # ── threads ──────────────────────────────────────────────────────────────────────────────

    def _choose(self, text: bytes) -> bytes:
        thread = fields.thread(text[1:])
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
        if fields.thread(text) not in self._target.threads():
            raise TargetError(ESRCH)
        return b"OK"

    # ── questions ────────────────────────────────────────────────────────────────────────────

    def _query(self, text: bytes) -> bytes:
        name, separator, rest = fields.split(text)
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
                if (thread := fields.thread(rest)) not in self._target.threads():
                    raise TargetError(ESRCH)
                return self._target.thread_state(thread).encode().hex().encode()
            case b"Symbol":
                return b"OK"
            case b"Xfer":
                return self._transfer(rest)
            case b"Rcmd" if separator == b",":
                command = fields.unhex(rest).decode(errors="replace")
                answer = self._target.monitor(self._thread, command)
                return answer.encode()[:READ_MAX].hex().encode() or b"OK"
            case b"qemu.PhyMemMode":
                return b"%d" % self._physical
            case _:
                return b""

    def _set(self, text: bytes) -> bytes:
        name, _, rest = fields.split(text)
        match name:
            case b"StartNoAckMode":
                self.no_ack = True
                return b"OK"
            case b"qemu.PhyMemMode":
                self._physical = bool(fields.number(rest))
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
        offset, length = fields.address_and_length(place)
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
