"""A network of one host at the other end of ``--net socket=PATH``: it answers ARP, DHCP and TFTP.

For guests that boot from the network. Sources: RFC 826 (ARP), 2131 and 2132 (DHCP), 1350 (TFTP),
2348 and 2349 (its options blksize and tsize). Frames come as QEMU's ``-netdev stream`` sends them:
a length of four bytes, then the frame.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path

MAC = b"\x52\x54\x00\x00\x00\x01"
HOST, GUEST = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"
MASK = b"\xff\xff\xff\x00"
ETHERNET = struct.Struct("!6s6sH")
IPV4 = struct.Struct("!BBHHHBBH4s4s")
UDP_HEADER = struct.Struct("!HHHH")
IP, ARP, UDP = 0x0800, 0x0806, 17
DHCP_SERVER, DHCP_CLIENT, TFTP = 67, 68, 69
TRANSFER = 2000  # the port that a file is sent from
MAGIC = b"\x63\x82\x53\x63"
DISCOVER, OFFER, ACK = 1, 2, 5
RRQ, DATA, ACKNOWLEDGE, ERROR, OACK = 1, 3, 4, 5, 6


class BootServer:
    """Listens at `path` and serves the one machine that connects, until closed. `files` by name;
    `log` is what it was asked for."""

    def __init__(self, path: Path, files: dict[str, bytes]) -> None:
        self.log: list[str] = []
        self._files = files
        self._sending, self._block_size = b"", 512
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._machine: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> BootServer:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, self._machine):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._machine, _ = self._listener.accept()
            with self._machine as machine, machine.makefile("rb") as stream:
                while size := stream.read(4):
                    self._frame(stream.read(int.from_bytes(size, "big")))

    def _send(self, target: bytes, kind: int, packet: bytes) -> None:
        frame = ETHERNET.pack(target, MAC, kind) + packet
        assert self._machine is not None
        self._machine.sendall(struct.pack("!I", len(frame)) + frame)

    def _frame(self, frame: bytes) -> None:
        _, source, kind = ETHERNET.unpack_from(frame)
        packet = frame[ETHERNET.size :]
        if kind == ARP and packet[6:8] == b"\0\1" and packet[24:28] == HOST:
            reply = packet[:6] + b"\0\2" + MAC + HOST + packet[8:18]
            self._send(source, ARP, reply)
        elif kind == IP and packet[9] == UDP:
            start = (packet[0] & 15) * 4
            from_port, to_port, size, _ = UDP_HEADER.unpack_from(packet, start)
            data = packet[start + UDP_HEADER.size : start + size]
            if to_port == DHCP_SERVER:
                self._dhcp(source, data)
            elif to_port in (TFTP, TRANSFER):
                self._tftp(source, from_port, data)

    def _send_udp(self, target: bytes, ports: tuple[int, int], data: bytes, to: bytes) -> None:
        size = UDP_HEADER.size + len(data)
        header = IPV4.pack(0x45, 0, IPV4.size + size, 0, 0, 64, UDP, 0, HOST, to)
        total = sum(struct.unpack("!10H", header))
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        header = header[:10] + checksum.to_bytes(2, "big") + header[12:]
        udp = UDP_HEADER.pack(*ports, size, 0)  # 0: no checksum
        self._send(target, IP, header + udp + data)

    def _dhcp(self, source: bytes, request: bytes) -> None:
        options, at = {}, 240
        while at < len(request) and request[at] != 255:
            if request[at] == 0:
                at += 1
                continue
            options[request[at]] = request[at + 2 : at + 2 + request[at + 1]]
            at += 2 + request[at + 1]
        discovers = options[53] == bytes([DISCOVER])
        self.log.append("DISCOVER" if discovers else "REQUEST")
        answers = {53: bytes([OFFER if discovers else ACK]), 54: HOST, 51: b"\0\0\x0e\x10", 1: MASK}
        # op 2 (reply), hardware, xid, secs and flags as asked; then ciaddr, yiaddr, siaddr, giaddr.
        head = b"\2" + request[1:12] + bytes(4) + GUEST + HOST + bytes(4) + request[28:44]
        body = b"".join(bytes([code, len(value)]) + value for code, value in answers.items())
        reply = head.ljust(236, b"\0") + MAGIC + body + b"\xff"
        self._send_udp(source, (DHCP_SERVER, DHCP_CLIENT), reply, b"\xff" * 4)

    def _tftp(self, source: bytes, port: int, data: bytes) -> None:
        (code,) = struct.unpack_from("!H", data)
        if code == RRQ:
            answer = self._open(data[2:].split(b"\0"))
        elif code == ACKNOWLEDGE:
            (done,) = struct.unpack_from("!H", data, 2)
            start = done * self._block_size  # files here are shorter than 65535 blocks
            if start > len(self._sending):
                return  # that was the last block
            block = self._sending[start : start + self._block_size]
            answer = struct.pack("!HH", DATA, done + 1) + block
        else:
            return
        self._send_udp(source, (TRANSFER, port), answer, GUEST)

    def _open(self, words: list[bytes]) -> bytes:
        name, asked = words[0].decode(), dict(zip(words[2:-1:2], words[3::2], strict=False))
        self.log.append(name)
        if name not in self._files:
            return struct.pack("!HH", ERROR, 1) + b"File not found\0"
        self._sending = self._files[name]
        self._block_size = int(asked.get(b"blksize", b"512"))
        taken = {b"blksize": b"%d" % self._block_size, b"tsize": b"%d" % len(self._sending)}
        pairs = b"".join(b"%s\0%s\0" % pair for pair in taken.items() if pair[0] in asked)
        return struct.pack("!H", OACK) + pairs
