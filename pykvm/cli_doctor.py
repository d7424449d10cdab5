"""``pykvm doctor``: the examination as a table for people or as JSON for programs.

Reached from `cli`. Finding out is `doctor.examination`'s part; this is only the telling.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.doctor.examination import Examination

EPILOG = """\
exit codes:
  0    this host's KVM runs Linux
  1    small guests only; 'pykvm lab -- COMMAND' runs COMMAND where KVM is complete
  2    no usable KVM
  125  pykvm failed

--json prints one object:
  pykvm         version
  verdict       level ("linux", "small guests" or "none"), code (the exit code), text
  host          kernel, cpu, virtualization, hypervisor, kvm_api
  checks        by name: ok (true, false, or null where the question does not arise),
                detail, linux_needs_it
  costs         vm_create_ms, vm_destroy_ms, exit_c_us, exit_python_us,
                ring0_mips, ring3_mips; null where it could not be measured
  capabilities  KVM_CAP_* in lower case, with the value of KVM_CHECK_EXTENSION
checks, costs and capabilities are empty where there is no usable KVM.
"""
NEEDED = "  (Linux needs it)"


def add_parser(subparsers: Any) -> None:
    """Add ``doctor`` to the command line."""
    parser: ArgumentParser = subparsers.add_parser(
        "doctor",
        help="find out what this host's KVM can do",
        description="Find out what this host's KVM can do by running small guests on it.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="for programs; see below")
    parser.set_defaults(func=run)


def run(args: Namespace) -> int:
    """Carry out ``pykvm doctor``; returns the exit code."""
    from pykvm.doctor.examination import examine

    found = examine()
    if args.json:
        import json

        print(json.dumps(found.as_json(), indent=2))
    else:
        print("\n".join(table(found, _marks())))
    return found.verdict.code


def _marks() -> dict[bool | None, str]:
    """What stands before a yes, a no and neither; coloured on a terminal that likes it."""
    marks = {True: "✓", False: "✗", None: "·"}
    try:
        "".join(marks.values()).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        marks = {True: "yes", False: "no ", None: "-  "}
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):  # https://no-color.org
        for ok, colour in ((True, 32), (False, 31)):
            marks[ok] = f"\x1b[{colour}m{marks[ok]}\x1b[0m"
    return marks


def table(found: Examination, marks: dict[bool | None, str]) -> Iterator[str]:
    """The lines of the table."""
    from pykvm.doctor.checks import GROUPS

    host = found.host
    yield f"{host['cpu'] or 'unknown CPU'}, Linux {host['kernel']}"
    yield _kind(host)
    for name, checks in GROUPS.items() if found.results else ():
        yield ""
        yield name
        for check in checks:
            ok, detail = found.results[check.key]
            needed = NEEDED if ok is False and check.linux else ""
            yield f"  {marks[ok]} {check.label:30} {detail}{needed}".rstrip()
    yield from _costs(found)
    yield from _capabilities(found, marks)
    yield ""
    yield f"verdict: {found.verdict.text}"


def _kind(host: dict[str, str]) -> str:
    if "kvm_api" not in host:
        return "no usable /dev/kvm"
    where = ", itself a guest" if host["hypervisor"] == "yes" else ""
    hardware = host["virtualization"]
    kind = "a KVM made of software" if hardware.startswith("none") else f"KVM with {hardware}"
    return f"{kind}{where}; API version {host['kvm_api']}"


def _costs(found: Examination) -> Iterator[str]:
    if not found.costs:
        return
    from pykvm.doctor.costs import LABELS

    yield ""
    yield "costs"
    for key, label in LABELS.items():
        value = found.costs[key]
        yield f"    {label:36} {'not measured' if value is None else _figure(value)}"


def _figure(value: float) -> str:
    return f"{value:12,.2f}" if value < 100 else f"{value:9,.0f}"


def _capabilities(found: Examination, marks: dict[bool | None, str]) -> Iterator[str]:
    if not found.capabilities:
        return
    from textwrap import fill

    from pykvm.doctor.capabilities import CAPABILITIES

    yield ""
    yield "capabilities"
    for key, value in found.capabilities.items():
        if CAPABILITIES[key].unit:
            yield f"    {CAPABILITIES[key].label:36} {value:9,} {CAPABILITIES[key].unit}"
    for ok in (True, False):
        names = [
            CAPABILITIES[key].label
            for key, value in found.capabilities.items()
            if not CAPABILITIES[key].unit and bool(value) is ok
        ]
        if names:
            text = fill(", ".join(names), 92, initial_indent="    ", subsequent_indent="    ")
            yield f"  {marks[ok]} {text.strip()}"
