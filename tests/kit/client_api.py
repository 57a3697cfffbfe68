# SPDX-License-Identifier: Apache-2.0
"""The client API behind real TLS on loopback, and independent clients for it: curl, aiohttp, raw bytes, raw h2."""

from __future__ import annotations

import asyncio
import json
import uuid as uuids
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived, StreamEnded, StreamReset

from tests.kit.marble_client import MarbleCredentials
from tests.kit.programs import program
from tests.kit.tls_port import TlsPort, tls_port
from xds_server.client_api import ALPN, ClientApi, HttpLimits
from xds_server.client_api_routes import routes
from xds_server.metrics import CoordinatorMetrics
from xds_server.operations import Operations
from xds_server.tls_front import TlsFrontConfig

HTTP1, HTTP2 = "--http1.1", "--http2"


@dataclass(frozen=True, slots=True)
class Answer:
    """What curl got. Header names in lower case."""

    version: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        return self.headers.get("content-type", "")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def data(self) -> Any:
        assert self.status == 200, self.body
        return self.json["data"]

    @property
    def message(self) -> str:
        return str(self.json["message"])


async def curl(url: str, *flags: str, body: bytes | None = None) -> Answer:
    """One request by curl; fails if curl does."""
    send = [] if body is None else ["--data-binary", "@-"]
    process = await asyncio.create_subprocess_exec(
        program("curl"), "-sSki", "--path-as-is", "--max-time", "20", "-H", "Expect:", *flags, *send, url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate(body)
    assert process.returncode == 0, err.decode()
    return _parse(out)


def _parse(out: bytes) -> Answer:
    head, _, body = out.partition(b"\r\n\r\n")
    if head.split(b" ")[1] == b"100":
        return _parse(body)
    first, *lines = head.decode().split("\r\n")
    version, status = first.split(" ")[:2]
    fields = (line.partition(":") for line in lines)
    return Answer(version, int(status), {name.lower(): value.strip() for name, _, value in fields}, body)


@dataclass(slots=True)
class ApiPort:
    """The port, and how to talk to it."""

    tls: TlsPort
    api: ClientApi
    metrics: CoordinatorMetrics

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.tls.port}{path}"

    async def get(self, path: str, *flags: str) -> Answer:
        return await curl(self.url(path), *flags)

    async def post(self, path: str, body: bytes | Mapping[str, object], *flags: str) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await curl(self.url(path), *flags, body=raw)

    async def raw(self, request: bytes) -> bytes:
        """Everything the server says to these bytes until it closes."""
        reader, writer = await self.tls.connect()
        writer.write(request)
        answer = await reader.read()
        writer.transport.abort()
        return answer

    async def h2(self, credentials: MarbleCredentials | None = None) -> RawH2:
        return RawH2(*await self.tls.connect(credentials, alpn="h2"))


@asynccontextmanager
async def client_api(
    operations: Operations, limits: HttpLimits | None = None, *, max_body: int | None = None, idle: float = 60.0
) -> AsyncIterator[ApiPort]:
    """Serve `operations` until the block ends; nothing may be held then. `max_body`: of every route."""
    table = routes(operations)
    if max_body is not None:
        table = {key: replace(route, max_body=max_body) for key, route in table.items()}
    metrics = CoordinatorMetrics("1.2.3")
    api = ClientApi(table, metrics, limits)
    async with tls_port(api.connect, TlsFrontConfig(alpn=ALPN, idle_timeout=idle)) as tls:
        yield ApiPort(tls, api, metrics)
        await api.stop(1)
    assert api.budget.used == 0


class RawH2:
    """An HTTP/2 client that does as it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.h2 = reader, writer, H2Connection()
        self.h2.initiate_connection()

    @staticmethod
    def head(path: str, method: str = "GET", **fields: str) -> list[tuple[str, str]]:
        pseudo = [(":method", method), (":scheme", "https"), (":authority", "x"), (":path", path)]
        return pseudo + [(name.replace("_", "-"), value) for name, value in fields.items()]

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def events(self) -> AsyncIterator[Event]:
        """Until the server closes."""
        self.flush()
        while data := await self.reader.read(65536):
            for event in self.h2.receive_data(data):
                if isinstance(event, DataReceived) and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id or 0)
                yield event
            self.flush()

    async def answers(self, streams: Sequence[int]) -> dict[int, tuple[int, bytes]]:
        """Status and body of each of these streams; -code for one that is reset, as for all after a GOAWAY."""
        status: dict[int, int] = {}
        bodies: dict[int, bytearray] = {stream: bytearray() for stream in streams}
        waiting = set(streams)
        async for event in self.events():
            match event:
                case ResponseReceived():
                    status[event.stream_id or 0] = int(dict(event.headers or [])[b":status"])
                case DataReceived():
                    bodies[event.stream_id or 0] += event.data or b""
                case StreamEnded():
                    waiting.discard(event.stream_id or 0)
                case StreamReset() if event.stream_id in waiting:
                    status[event.stream_id or 0] = -int(event.error_code or 0)
                    waiting.discard(event.stream_id or 0)
                case ConnectionTerminated():
                    status |= dict.fromkeys(waiting, -int(event.error_code or 0))
                    waiting.clear()
            if not waiting:
                break
        return {stream: (status[stream], bytes(bodies[stream])) for stream in streams if stream in status}

    async def goaway(self) -> int | None:
        """The code of the server's GOAWAY, None if it closes without."""
        async for event in self.events():
            if isinstance(event, ConnectionTerminated):
                return int(event.error_code or 0)
        return None

    def abort(self) -> None:
        self.writer.transport.abort()


def shown(directory: Path, certificates: bytes, key: bytes) -> list[str]:
    """curl's flags to show a client certificate with its chain; both PEM."""
    cert_file, key_file = directory / f"{uuids.uuid4()}.pem", directory / f"{uuids.uuid4()}.key"
    cert_file.write_bytes(certificates)
    key_file.write_bytes(key)
    return ["--cert", str(cert_file), "--key", str(key_file)]
