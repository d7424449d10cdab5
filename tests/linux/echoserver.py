"""Echoes what comes by TCP to port 7000, and by the unix sockets that are named; in the lab."""

from __future__ import annotations

import asyncio
import sys


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # a guest that was reset
    writer.close()


async def main() -> None:
    await asyncio.start_server(serve, "0.0.0.0", 7000)
    for path in sys.argv[1:]:
        await asyncio.start_unix_server(serve, path)
    print("serving", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
