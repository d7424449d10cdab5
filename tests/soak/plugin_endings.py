"""Ends test runs in bad ways and tells what they leave: run in the lab by test_pytest_plugin.py.

python plugin_endings.py KERNEL FOLDER
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CASES = """
import os, time
import pytest

@pytest.mark.pykvm(net="user")
@pytest.mark.parametrize("case", range(400))
def test_it(vm, machine, case):
    vm.run("echo $$", check=True)
    with open("ran", "a") as ran:
        print(os.getpid(), machine.boot_seconds, file=ran)
"""
SLACK_S = 400.0


def names(folder: str) -> set[str]:
    return {f"{folder}/{name}" for name in os.listdir(folder)}


def there_is() -> set[str]:
    """Processes, network interfaces, sockets with a name, temporary files."""
    found = names("/sys/class/net") | names(os.environ["TMPDIR"])
    for process in Path("/proc").glob("[1-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if words and process.name != str(os.getpid()):
            found.add(f"{process.name} {words.decode(errors='replace')}")
    sockets = Path("/proc/net/unix").read_text().splitlines()
    return found | {line.split()[7] for line in sockets if len(line.split()) > 7}


def ran() -> list[list[str]]:
    try:
        return [line.split() for line in Path("ran").read_text().splitlines()]
    except OSError:
        return []


def wait_for(what: Callable[[], object], seen: Callable[[], object] = ran) -> None:
    until = time.monotonic() + SLACK_S
    while not what():
        assert time.monotonic() < until, seen()
        time.sleep(0.1)


def begin(*words: str) -> subprocess.Popen[bytes]:
    Path("ran").unlink(missing_ok=True)
    base = ["--basetemp=base", "-q", "-p", "no:cacheprovider", "--pykvm-kernel", sys.argv[1]]
    command = [sys.executable, "-m", "pytest", *base, *words, "cases.py"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def worker_of(run: subprocess.Popen[bytes]) -> int:
    return next(int(pid) for pid, _ in ran() if int(pid) != run.pid)


def end(how: str, run: subprocess.Popen[bytes]) -> None:
    wait_for(lambda: len(ran()) > 10)
    if how == "a worker is killed":
        os.kill(worker_of(run), signal.SIGKILL)
        seen = len(ran())
        wait_for(lambda: len(ran()) > seen + 10)  # the others go on
    run.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
    run.wait(SLACK_S)


def main() -> None:
    os.chdir(sys.argv[2])
    Path("cases.py").write_text(CASES)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["TMPDIR"] = os.path.abspath("temporary")  # other programs use /tmp, too
    os.mkdir("temporary")
    for how, words in {
        "two workers boot": ["-n", "2"],
        "a worker is killed": ["-n", "2"],
        "interrupted": [],
        "killed": [],
    }.items():
        before = there_is()
        run = begin(*words)
        if how == "two workers boot":
            wait_for(lambda: len({pid for pid, _ in ran()}) == 2)
            print("boots:", len({seconds for _, seconds in ran()}), flush=True)
        end(how, run)
        wait_for(lambda: not there_is() - before, lambda: there_is() - before)  # noqa: B023
        print(f"nothing is left: {how}", flush=True)


main()
