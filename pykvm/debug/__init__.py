"""Looking inside: traces, statistics, pictures. Nothing here is imported unless it is asked for.

Reached from `cli_boot` and from users' code. Read docs/tracing.md.
"""
