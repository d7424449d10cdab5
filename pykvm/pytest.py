"""The pytest plugin: a Linux guest of its own for every test.

Reached from pytest, by the entry point ``pykvm`` (pyproject.toml). A guest is booted once in a run,
and each test has a fork of it. ::

    @pytest.mark.pykvm(memory="128M", cpus=2)
    def test_a_sysctl(vm):
        assert vm.run("sysctl -n kernel.pid_max").code == 0

Read `agent` for what `vm` is, docs/pytest.md for all that a marker may say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from pykvm.agent import GuestMachine

    Machines = Callable[..., GuestMachine]

BUSYBOX: Final = "/bin/busybox"
INSTALL: Final = (BUSYBOX, "--install", "-s", "/bin")
OPTIONS: Final = ("kernel", "cpus", "memory", "append", "add", "modules", "disks", "setup")
MARKER: Final = (
    "pykvm(kernel=None, cpus=1, memory='256M', append=…, add=(), modules=(), disks=(), setup=()): "
    "the machine that the test's `vm` is a fork of: options of 'pykvm boot', kernel modules to "
    "load, commands to run once"
)
CONSOLE_SHOWN: Final = 8000  # characters


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the command line may say."""
    group = parser.getgroup("pykvm")
    group.addoption(
        "--pykvm-kernel",
        metavar="KERNEL",
        help="the kernel of the guests, a path or as 'pykvm boot' takes it (default: its default)",
    )
    group.addoption(
        "--pykvm-no-cache",
        action="store_true",
        help="boot the guests, though they were booted before and kept, and keep none",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


class Stock:
    """The machines of a run, and for each a fork of it that a test has left behind."""

    def __init__(self, cache: bool) -> None:
        self._cache = cache
        self._booted: dict[str, GuestMachine] = {}
        self._left: dict[tuple[GuestMachine, int], GuestMachine] = {}

    def machine(self, **options: Any) -> GuestMachine:
        """The machine with these options, booted when first asked for."""
        key = repr(sorted(options.items()))
        if key not in self._booted:
            self._booted[key] = boot(**options, cache=self._cache)
        return self._booted[key]

    @contextlib.contextmanager
    def fork(self, machine: GuestMachine) -> Iterator[GuestMachine]:
        """A fork of `machine`. To take one back to its beginning is cheaper than to make one."""
        now = (machine, machine.asked)  # it may be asked for something, and is another then
        with contextlib.ExitStack() as stack:
            vm = self._left.pop(now, None)
            if vm is not None:
                stack.push(vm)
                vm.reset()
            else:
                vm = stack.enter_context(machine.fork())
            yield vm
            if vm.is_as_forked and vm.is_usable:
                stack.pop_all()
                self._left[now] = vm

    def close(self) -> None:
        for machine in (*self._left.values(), *self._booted.values()):
            machine.close()


@pytest.fixture(scope="session")
def pykvm_stock(pytestconfig: pytest.Config) -> Iterator[Stock]:
    """What the other fixtures take from."""
    stock = Stock(cache=not pytestconfig.getoption("--pykvm-no-cache"))
    yield stock
    stock.close()


@pytest.fixture(scope="session")
def pykvm_machines(pytestconfig: pytest.Config, pykvm_stock: Stock) -> Machines:
    """``pykvm_machines(cpus=2)``: the machine with these options, at rest: fork it."""
    kernel = pytestconfig.getoption("--pykvm-kernel")
    return lambda **options: pykvm_stock.machine(**{"kernel": kernel, **options})


@pytest.fixture(scope="session")
def machine(pykvm_machines: Machines) -> GuestMachine:
    """The machine without any options of a marker's, at rest: fork it."""
    return pykvm_machines()


@pytest.fixture
def vm(
    request: pytest.FixtureRequest, pykvm_machines: Machines, pykvm_stock: Stock
) -> Iterator[GuestMachine]:
    """A fork of the machine that the test's marker describes."""
    with pykvm_stock.fork(pykvm_machines(**_options(request.node))) as fork:
        yield fork


def _options(item: pytest.Item) -> dict[str, Any]:
    """What its markers say, the nearest first."""
    options: dict[str, Any] = {}
    for mark in item.iter_markers("pykvm"):
        wrong = [*map(repr, mark.args), *sorted(set(mark.kwargs) - set(OPTIONS))]
        if wrong:
            raise pytest.UsageError(
                f"@pytest.mark.pykvm: {', '.join(wrong)}: unknown; write NAME=VALUE with one of "
                f"{', '.join(OPTIONS)}"
            )
        options = {**mark.kwargs, **options}
    return options


def boot(
    kernel: str | None,
    cpus: int = 1,
    memory: str | int = "256M",
    append: str | None = None,
    add: tuple[str, ...] = (),
    modules: tuple[str, ...] = (),
    disks: tuple[str, ...] = (),
    setup: tuple[str, ...] = (),
    cache: bool = True,
) -> GuestMachine:
    """A machine with busybox's commands, at rest. Skips where the host cannot."""
    from pykvm.agent import cached
    from pykvm.agent.config import configure
    from pykvm.agent.guest import BOOT_S
    from pykvm.config import CMDLINE_DEFAULT, parse_size

    options: dict[str, Any] = {
        "add": (BUSYBOX, *_listed(add)),
        "modules": _listed(modules),
        "cpus": cpus,
        "memory": parse_size(memory) if isinstance(memory, str) else memory,
        "cmdline": CMDLINE_DEFAULT if append is None else append,
    }
    if disks:
        options["disks"] = tuple(map(_disk, _listed(disks)))
    _skip_where_linux_cannot_run()
    config = configure(_find_kernel(kernel), **options)
    commands = (INSTALL, *_listed(setup))
    if not cache:
        return cached.boot(config, commands, BOOT_S)
    return cached.boot_once(config, commands, BOOT_S, _warn)


def _warn(message: str) -> None:
    import warnings

    warnings.warn(pytest.PytestWarning(f"pykvm: {message}"), stacklevel=2)


def _listed(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """One is as good as a list of one."""
    return (value,) if isinstance(value, str) else tuple(value)


def _disk(spec: str) -> Any:
    """What ``--disk`` is given. What a test writes goes to an overlay that ends with its `vm`."""
    from pykvm.virtio.config.disk import DROPPED, parse_disk

    disk = parse_disk(spec)
    return disk if disk.read_only or disk.overlay else disk._replace(overlay=DROPPED)


def _find_kernel(kernel: str | None) -> str:
    import os

    from pykvm.cli_kernel import find_or_fetch

    return kernel if kernel is not None and os.path.exists(kernel) else find_or_fetch(kernel)


def _skip_where_linux_cannot_run() -> None:
    import os

    from pykvm.doctor import why_not_linux
    from pykvm.errors import KvmError

    try:
        problem = why_not_linux()
    except KvmError as error:
        problem = str(error)
    if problem is not None:
        pytest.skip(f"pykvm: {problem}; put 'pykvm lab --' in front of pytest")
    if not os.path.exists(BUSYBOX):
        pytest.skip(f"pykvm: {BUSYBOX} is missing; install busybox-static")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to what is told of a failure: the console of the test's machine, its last exits."""
    report: pytest.TestReport = yield
    vm = getattr(item, "funcargs", {}).get("vm")
    if report.failed and vm is not None and hasattr(vm, "last_exits"):
        exits = "\n".join(vm.last_exits())
        report.sections.append(("console of the pykvm machine", vm.console[-CONSOLE_SHOWN:]))
        report.sections.append(("last exits of the pykvm machine", exits))
    return report
