# SPDX-License-Identifier: Apache-2.0
"""Everything that crosses an interface, searched for markers as it passes (packet(7); needs CAP_NET_RAW)."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from typing import Self

ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_IGNORE_OUTGOING = 23  # on lo each packet goes out and comes in: once is enough
SNAP = 256 * 1024  # more than any packet, segmentation offload included
BUFFER = 128 * 1024 * 1024

Flow = tuple[bytes, bytes, int, int]  # source and destination address, source and destination port


class LoopbackCapture:
    """Use as a context manager; the results are complete after it has ended."""

    def __init__(self, markers: tuple[bytes, ...], interface: str = "lo") -> None:
        """Of the network namespace where it is made. Raises PermissionError where capturing is not allowed."""
        self._markers = markers
        self._interface = interface
        self._keep = max(map(len, markers)) - 1
        self._tails: dict[Flow, bytes] = {}
        self._last: int | None = None  # with which packet the capture ends; None: it goes on
        self._thread = threading.Thread(target=self._run)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, interface == "lo")
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._socket.settimeout(0.1)
        self.found: dict[bytes, set[int]] = {marker: set() for marker in markers}
        """For each marker the destination ports of the TCP flows (-1: another protocol) in which it was seen."""
        self.ciphertext: Counter[int] = Counter()
        """By destination port: how many segments started with a TLS record of application data."""
        self.packets = 0
        self.dropped = 0

    def __enter__(self) -> Self:
        self._socket.bind((self._interface, ETH_P_ALL))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Loopback is never quiet where other tests run: it ends with what has arrived by now.
        arrived, self.dropped = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self._last = arrived - self.dropped
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while self._last is None or self.packets < self._last:
            try:
                packet = self._socket.recv(SNAP)
            except TimeoutError:
                continue
            self.packets += 1
            self._look(packet)

    def _look(self, packet: bytes) -> None:
        flow, payload = _tcp(packet)
        if flow is None:
            self._search(packet, -1)
        elif payload:
            if payload[:3] == b"\x17\x03\x03":
                self.ciphertext[flow[3]] += 1
            # A marker may lie across two segments.
            data = self._tails.get(flow, b"") + payload
            self._tails[flow] = data[-self._keep :]
            self._search(data, flow[3])

    def _search(self, data: bytes, port: int) -> None:
        for marker in self._markers:
            if marker in data:
                self.found[marker].add(port)


def _tcp(packet: bytes) -> tuple[Flow | None, bytes]:
    """The flow and the payload of a TCP segment in an Ethernet frame (loopback has its header, all zero addresses)."""
    kind = packet[12:14]
    if kind == b"\x08\x00" and packet[23] == socket.IPPROTO_TCP:
        segment, source, destination = 14 + (packet[14] & 15) * 4, packet[26:30], packet[30:34]
        end = 14 + int.from_bytes(packet[16:18]) or len(packet)
    elif kind == b"\x86\xdd" and packet[20] == socket.IPPROTO_TCP:
        segment, source, destination = 54, packet[22:38], packet[38:54]
        end = len(packet)
    else:
        return None, b""
    ports = struct.unpack_from("!HH", packet, segment)
    payload = segment + (packet[segment + 12] >> 4) * 4
    return (source, destination, *ports), packet[payload : max(end, payload)]
