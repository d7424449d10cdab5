"""A machine whose Linux guest has pykvm's init as its agent: `GuestMachine`.

Reached from `pykvm.pytest` and from users' code. The guest runs, on a thread of its own, from the
first thing that it is asked for until it is to rest, as it does to be forked. Read `link` for how
it is asked.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from pykvm.agent import wire
from pykvm.agent.config import configure, saved_config, with_port
from pykvm.agent.errors import CommandError, GuestEndedError
from pykvm.agent.faults import faults
from pykvm.agent.link import OUTPUT_MAX, Completed, Link, LinkError
from pykvm.agent.runner import Runner
from pykvm.devices.vmgenid import SIZE as GENERATION_ID_SIZE
from pykvm.errors import PykvmError
from pykvm.machine import Machine

if TYPE_CHECKING:
    from typing import Self

    from pykvm.config import MachineConfig

BOOT_S: Final = 120.0  # until init answers; seconds on most hosts, a minute on an emulated one
COMMAND_S: Final = 60.0


class GuestMachine:
    """A machine with an agent. A context manager; `boot`, `restore` or `fork` makes one."""

    def __init__(self, machine: Machine, link: Link, past: str = "") -> None:
        """Owns both. The port of `machine` leads to `link`; `past` was on its console before."""
        self.boot_seconds = 0.0  # that `boot` took
        self.is_as_forked = False  # or was, before it ran: `reset` makes a new fork of it
        self.asked = 0  # how often
        self._machine = machine
        self._past = past
        self._clock_is_late = False  # the guest's time is that of the machine it was forked from
        self._link = link
        self._runner = Runner(machine, on_end=link.hang_up)
        self._lost = ""  # why the agent does not listen any more
        self.end_was_told = False  # somebody was raised a `GuestEndedError` for it
        self._lock = threading.Lock()  # one request at a time

    @classmethod
    def boot(
        cls,
        kernel: str | os.PathLike[str],
        *,
        add: Iterable[str] = (),
        modules: Iterable[str] = (),
        timeout: float = BOOT_S,
        **options: Any,
    ) -> GuestMachine:
        """Boot `kernel`, a path, until its init answers; `add` is as ``--add`` has it, `modules`
        names kernel modules to load, `options` are further fields of `MachineConfig`.

        Raises `ConfigError`, `BootError`, `KvmError`, and `GuestEndedError`.
        """
        return cls.start(configure(kernel, add=add, modules=modules, **options), timeout)

    @classmethod
    def start(cls, config: MachineConfig, timeout: float = BOOT_S) -> GuestMachine:
        """Boot what `configure` has made."""
        started = time.monotonic()
        self = cls._make(lambda link: Machine(with_port(config, link)))
        try:
            self.greet(timeout)
        except BaseException:
            self.close()
            raise
        self.boot_seconds = time.monotonic() - started
        return self

    @classmethod
    def restore(cls, folder: str | os.PathLike[str], **options: Any) -> GuestMachine:
        """Go on where one rested that was saved in `folder` (`machine.snapshot`); `options` as
        `Machine.restore`. Raises as that."""
        config = saved_config(os.fspath(folder))
        return cls._copy(
            lambda link: Machine.restore(
                folder, **{"ports": with_port(config, link).ports, **options}
            )
        )

    @classmethod
    def _make(cls, machine: Callable[[Link], Machine], past: str = "") -> GuestMachine:
        link = Link()
        try:
            self = cls(machine(link), link, past)
        except BaseException:
            link.close()
            raise
        link.connected()
        return self

    @classmethod
    def _copy(cls, machine: Callable[[Link], Machine], past: str = "") -> GuestMachine:
        self = cls._make(machine, past)
        self._clock_is_late = True
        # What the other end of a network knows of the guest, no reset takes back.
        self.is_as_forked = not self._machine.config.nets
        return self

    def fork(self, **changes: Any) -> GuestMachine:
        """A machine of its own that goes on where this one stands; `changes` as `Machine.fork`.

        This one rests until it is asked for something again, and may be forked again meanwhile.
        """
        self.rest()
        self.is_as_forked = False  # `reset` leads here now
        config = self._machine.config

        def fork(link: Link) -> Machine:
            return self._machine.fork(**{"ports": with_port(config, link).ports, **changes})

        return GuestMachine._copy(fork, self.console)

    def reset(self) -> None:
        """Go back, in place, to where it was forked or restored, or last was forked itself: as
        `Machine.reset`, but with a new generation id, as a new fork has. Raises as `rest`."""
        self.rest()
        self._machine.generation_id.value = os.urandom(GENERATION_ID_SIZE)
        self._machine.reset()
        self._clock_is_late = True

    # ── what it is asked for ─────────────────────────────────────────────────────────────────

    @overload
    def run(
        self,
        command: str | Sequence[str],
        *,
        input: str | bytes = ...,
        timeout: float | None = ...,
        cwd: str = ...,
        env: Mapping[str, str] | None = ...,
        check: bool = ...,
        text: Literal[True] = ...,
        output_max: int = ...,
    ) -> Completed[str]: ...

    @overload
    def run(
        self,
        command: str | Sequence[str],
        *,
        input: str | bytes = ...,
        timeout: float | None = ...,
        cwd: str = ...,
        env: Mapping[str, str] | None = ...,
        check: bool = ...,
        text: Literal[False],
        output_max: int = ...,
    ) -> Completed[bytes]: ...

    def run(
        self,
        command: str | Sequence[str],
        *,
        input: str | bytes = b"",
        timeout: float | None = COMMAND_S,
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        check: bool = False,
        text: bool = True,
        output_max: int = OUTPUT_MAX,
    ) -> Completed[str] | Completed[bytes]:
        """Run a command in the guest: a list as it is, text by the guest's /bin/sh.

        `input` is its standard input, `env` what its environment has beside init's. After `timeout`
        seconds it is killed, with its process group, so it is after `output_max` bytes of output.
        It is over when its process is: what that leaves in the background goes on, but has nowhere
        to write to. The output is text in UTF-8 or, with ``text=False``, bytes.

        Raises `ConfigError` for a command that cannot be sent, `CommandTimeoutError` and
        `OutputError`, with `check` `CommandError` for a code other than 0, and `GuestEndedError`.
        """
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        request = wire.command(words, cwd, env or {})
        data = input.encode(errors="surrogateescape") if isinstance(input, str) else input
        try:
            done = self._ask(request, data, timeout, output_max)
        except PykvmError as error:
            error.add_note(f"the command was {command!r}")
            raise
        shown = _as_text(done) if text else done
        if check and done.code:
            raise CommandError(f"{command!r} ended with code {done.code}", shown)
        return shown

    def read_file(self, path: str, timeout: float | None = COMMAND_S) -> bytes:
        """A file of the guest's. Raises `OSError` as it was in the guest, and as `run`."""
        done = self._ask(wire.read(path), b"", timeout)
        if done.code:
            raise _os_error(done.code, path)
        return done.stdout

    def write_file(
        self,
        path: str,
        data: str | bytes,
        mode: int = 0o644,
        timeout: float | None = COMMAND_S,
    ) -> None:
        """Make a file of the guest's, or replace what is in it. Raises as `read_file`."""
        content = data.encode() if isinstance(data, str) else data
        done = self._ask(wire.write(path, mode), content, timeout)
        if done.code:
            raise _os_error(done.code, path)

    @property
    def console(self) -> str:
        """What the guest wrote to its console, also before it was forked."""
        return self._past + self._machine.console_log.decode(errors="replace")

    @property
    def faults(self) -> list[str]:
        """What the kernel has said of its own faults since this machine began: see `faults`."""
        return faults(self._machine.console_log)

    def last_exits(self) -> list[str]:
        """Why the vCPUs left the guest of late, and what devices did: lines. It rests then."""
        with self._lock, contextlib.suppress(PykvmError):
            self._runner.stop()
        return self._runner.recorder.lines()

    @property
    def machine(self) -> Machine:
        """For all else. Whoever has it may change what `reset` does not take back."""
        self.is_as_forked = False
        return self._machine

    # ── how it runs ──────────────────────────────────────────────────────────────────────────

    def greet(self, timeout: float) -> None:
        """Let the guest run until its init is there. Raises `GuestEndedError`."""
        with self._lock, self._running():
            self._link.greet(timeout)

    def _ask(
        self, request: bytes, input: bytes, timeout: float | None, output_max: int = OUTPUT_MAX
    ) -> Completed[bytes]:
        with self._lock, self._running():
            self.asked += 1
            if self._clock_is_late:
                request = wire.clock(time.time_ns()) + request
                self._clock_is_late = False
            return self._link.ask(request, input, timeout, output_max)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """The guest runs. Whatever breaks off what it was asked for leaves it lost."""
        if self._lost:
            raise GuestEndedError(f"the machine cannot be used any more: {self._lost}")
        self._runner.start()
        try:
            yield
        except LinkError as error:
            self._runner.stop()
            self._lost = self._runner.ending or str(error)
            raise self._end() from None
        except PykvmError:  # the command's end, not the guest's
            raise
        except BaseException:
            self._lost = "a command was broken off"
            raise

    @property
    def is_usable(self) -> bool:
        """Whether it can be asked for something, as far as is known."""
        return not (self._lost or self._runner.ending)

    def rest(self) -> None:
        """Let the guest stand still, until it is asked for something. Raises `GuestEndedError`."""
        with self._lock:
            self._runner.stop()
            self._lost = self._lost or self._runner.ending
        if self._lost:
            raise self._end()

    def _end(self) -> GuestEndedError:
        """What to raise: how it ended or, if it only does not answer, where it is."""
        self.end_was_told = True
        if self._runner.ending:
            report = self._runner.report or self.console
            first, _, rest = report.partition("\n")
            if first.startswith(self._lost):  # and says more
                return GuestEndedError(first, rest)
            return GuestEndedError(self._lost, report)
        from pykvm.report import where

        lines = (line for vcpu in self._machine.vcpus for line in where(self._machine, vcpu))
        return GuestEndedError("\n  ".join([self._lost, *lines]), self.console)

    def close(self) -> None:
        """Destroy the machine. Safe to call twice."""
        with contextlib.suppress(PykvmError):  # it was told when something was asked for, or never
            self._runner.stop()
        self._link.close()
        self._runner.recorder.close()
        self._machine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_text(done: Completed[bytes]) -> Completed[str]:
    texts = (out.decode(errors="surrogateescape") for out in done[1:])
    return Completed(done.code, *texts)


def _os_error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)
