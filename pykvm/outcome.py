"""How a run ended: the reason, the exit code, what the console said.

Reached from `machine.run`, handed to callers of the API and turned into the process's exit code by
`cli`. Read `report` for the text that goes with a bad end.
"""

from __future__ import annotations

from pykvm.lean import Enum, Record


class Reason(Enum):
    """Why the machine stopped. The value is what reports and scripts read."""

    POWEROFF = "power-off"
    REBOOT = "reboot"
    EXIT = "exit code from the guest"
    PANIC = "kernel panic"
    TRIPLE_FAULT = "triple fault"
    HALTED = "halted with interrupts disabled"
    HUNG = "hung"
    TIMEOUT = "timeout"
    QUIT = "quit"
    SIGNAL = "signal"
    DEBUGGER = "stopped by step or run_until"
    FAIL_ENTRY = "KVM_EXIT_FAIL_ENTRY"
    INTERNAL_ERROR = "KVM_EXIT_INTERNAL_ERROR"


# As docker and timeout(1) have taught: 124 timeout, 125 the tool's own failure, 128+n a signal.
CODE_TIMEOUT = 124
CODE_FAILURE = 125
CODE_GUEST_CRASH = 255

CODES = {
    Reason.POWEROFF: 0,
    Reason.REBOOT: 0,
    Reason.QUIT: 0,
    Reason.DEBUGGER: 0,
    Reason.PANIC: CODE_GUEST_CRASH,
    Reason.TRIPLE_FAULT: CODE_GUEST_CRASH,
    Reason.HALTED: CODE_GUEST_CRASH,
    Reason.HUNG: CODE_GUEST_CRASH,
    Reason.TIMEOUT: CODE_TIMEOUT,
    Reason.FAIL_ENTRY: CODE_FAILURE,
    Reason.INTERNAL_ERROR: CODE_FAILURE,
}


class Stats(Record):
    """What a run cost."""

    exits: int  # returns of KVM_RUN, all vCPUs
    exits_in_c: int  # accesses answered without entering Python
    seconds: float  # from the first vCPU's start to the last one's stop


class Outcome(Record):
    """How a run ended."""

    reason: Reason
    code: int  # the exit code for the shell: see CODES; EXIT and SIGNAL bring their own
    console: bytes  # what the guest sent to its serial port
    stats: Stats
    report: str = ""  # for a bad end: what happened, where, the likely remedy
