"""Looking inside: traces, statistics, pictures; gdb's stub, page tables.

Nothing here is imported unless it is asked for. Traces are reached from `cli_boot` and from users'
code: read docs/tracing.md. ``--gdb`` is served from `machine` and `watch`; in the order of reading:
`rsp` (packets), `gdbstub` (what they say), `description` and `registers` (what gdb calls a
register), `breakpoints`, `control` (stopping and going on), `target` (the machine, as the stub sees
it), `server` (the socket); read docs/debugging.md first.
"""
