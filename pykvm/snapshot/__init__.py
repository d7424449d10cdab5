"""A machine at rest: captured, kept in memory or on disk, and made to run again.

Reached from `Machine.snapshot`, `template`, `fork` and `reset`, and from ``pykvm restore``. Nothing
here is imported by a plain boot. Read `capture` for the order in which a machine comes to rest,
`template` for what it is then, docs/snapshots.md for the format on disk.
"""
