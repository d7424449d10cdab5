"""Single steps, each held against the instruction before it: gdb runs this file, inside itself.

Reached from the tests of gdb, in `tests/guests` and `tests/linux`: ``source`` it, then
``python steps(1000)``. Read `pykvm.debug.control` beside it.
"""

import gdb  # type: ignore[import-not-found]

PREFIXES = ("bnd ", "notrack ", "cs ", "ds ")
BRANCHES = ("j", "call", "ret", "iret", "loop", "sys")


def number(expression: str) -> int:
    return int(gdb.parse_and_eval(expression)) & (1 << 64) - 1


def followers(pc: int, instruction: dict[str, object]) -> "set[int] | None":
    """Where the vCPU may be after an instruction; None: no branch that can be read off it."""
    after = pc + int(str(instruction["length"]))
    text = str(instruction["asm"])
    while text.startswith(PREFIXES):
        text = text.partition(" ")[2].lstrip()
    name, *rest = text.split(maxsplit=1)
    if name.startswith("ret"):
        return {number("*(unsigned long *)$rsp")}
    if not name.startswith(BRANCHES):
        # A string instruction steps once for each round.
        return {after, pc} if name.startswith("rep") else {after}
    where = rest[0].split()[0] if rest else ""
    if not where.startswith("0x"):
        return None
    target = int(where, 16)
    return {target} if name.startswith(("jmp", "call")) else {target, after}


def steps(count: int) -> None:
    """Step, and hold every landing against what the instruction before it allows."""
    known: dict[int, dict[str, object]] = {}
    architecture = gdb.selected_frame().architecture()
    pc, lost, unread = number("$pc"), 0, 0
    for _ in range(count):
        if pc not in known:
            known[pc] = architecture.disassemble(pc)[0]
        allowed = followers(pc, known[pc])
        gdb.execute("stepi", to_string=True)
        landed = number("$pc")
        if allowed is None:
            unread += 1
        elif landed not in allowed:
            lost += 1
            print(f"lost: {pc:#x} {known[pc]['asm']} -> {landed:#x}")
        pc = landed
    print(f"{count} steps, {len(known)} places, {unread} indirect, {lost} lost", flush=True)
