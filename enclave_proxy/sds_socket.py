# SPDX-License-Identifier: Apache-2.0
"""SDS on a UNIX socket for an Envoy in the same TEE: the worker's identity and trust bundle, rotated as they change.

    Latest[View] ─► one pure stream per connection (sds.discovery) ─► grpclib ─► UNIX socket, mode 0600

Who may connect is who may open the socket file. Under Gramine only code in the same instance can; in a confidential VM
file permissions decide. A second process must not take the socket over silently (binding the same path again would do
just that), so a lock file is held, and a socket file that is there already is removed only if nobody answers on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
from pathlib import Path
from typing import Any, Protocol

from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.server import Server
from grpclib.server import Stream as GrpcStream

from enclave_proxy.errors import ProxyError
from sds.discovery import DeltaStream, Kind, ProtocolError, SotwStream, Stream, View
from sds.latest import Latest
from sds.resources import SECRET

SERVICE = "/envoy.service.secret.v3.SecretDiscoveryService"
IDENTIFIER = "marblemesh-worker"
MODE = 0o600
# grpclib's default of 100 made 200 clients that came at once wait for each other.
BACKLOG = 4096
MAX_STREAMS = 1024
SEND_SECONDS = 30.0
# File systems without locks (Gramine knows none on some mounts): the probe alone must do.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK})


class SocketInUseError(ProxyError):
    """Somebody else serves on this path."""


class Log(Protocol):
    """Where the server reports; a structlog logger fits."""

    def info(self, event: str, **fields: object) -> object: ...
    def warning(self, event: str, **fields: object) -> object: ...
    def error(self, event: str, **fields: object) -> object: ...


class _RawCodec(CodecBase):
    """Messages are bytes already."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class SdsSocket:
    """Serves the secrets of the newest view. `start` once, `stop` once."""

    def __init__(self, views: Latest[View], log: Log) -> None:
        self._views = views
        self._log = log
        self._server: Server | None = None
        self._path: Path | None = None
        self._lock: int | None = None
        self._streams = 0

    async def start(self, path: Path, mode: int = MODE) -> None:
        """Listen on `path`. Raises SocketInUseError if somebody else does, OSError if the path cannot be had."""
        self._lock = _take_lock(path)
        try:
            _remove_stale(path)
            server = Server([self], codec=_RawCodec())
            # The socket is born with its final permissions: nobody can connect between bind and chmod.
            before = os.umask(0o777 & ~mode)
            try:
                await server.start(path=str(path), backlog=BACKLOG)
            finally:
                os.umask(before)
        except BaseException:
            self._release()
            raise
        self._server, self._path = server, path

    async def stop(self) -> None:
        """Stop listening, end all streams, remove the socket file."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            # The lock file stays: removing it would let two others lock two different files of the same name.
            os.close(self._lock)
            self._lock = None

    def __mapping__(self) -> dict[str, Handler]:
        return {
            f"{SERVICE}/StreamSecrets": Handler(self._sotw, Cardinality.STREAM_STREAM, bytes, bytes),
            f"{SERVICE}/DeltaSecrets": Handler(self._delta, Cardinality.STREAM_STREAM, bytes, bytes),
        }

    async def _sotw(self, grpc: GrpcStream[bytes, bytes]) -> None:
        await self._serve(grpc, SotwStream)

    async def _delta(self, grpc: GrpcStream[bytes, bytes]) -> None:
        await self._serve(grpc, DeltaStream)

    async def _serve(self, grpc: GrpcStream[bytes, bytes], kind: type[Stream]) -> None:
        if self._streams >= MAX_STREAMS:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "too many streams")
        stream = kind(
            identifier=IDENTIFIER, nonce_prefix=f"{secrets.token_hex(4)}-", implied_type=SECRET, entitled=(SECRET,)
        )
        self._streams += 1
        try:
            await _Conversation(grpc, stream, self._views, self._log).run()
        except ProtocolError as e:
            raise GRPCError(Status[e.status], str(e)) from None
        finally:
            self._streams -= 1


class _Conversation:
    """One stream: a reader, a follower of the view, and the writer."""

    def __init__(self, grpc: GrpcStream[bytes, bytes], stream: Stream, views: Latest[View], log: Log) -> None:
        self._grpc = grpc
        self._stream = stream
        self._views = views
        self._log = log
        self._wake = asyncio.Event()
        self._ended = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        tasks = (loop.create_task(self._read()), loop.create_task(self._follow()))
        try:
            await self._write()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (fault := task.exception()) is not None:
                raise fault

    async def _read(self) -> None:
        try:
            while (data := await self._grpc.recv_message()) is not None:
                receipt = self._stream.receive_bytes(data)
                if receipt.kind is Kind.NACK:
                    self._log.warning("secret rejected by the local client", error=receipt.error)
                self._wake.set()
        finally:
            self._ended = True
            self._wake.set()

    async def _follow(self) -> None:
        async for view in self._views.changes():
            self._stream.update(view)
            self._wake.set()

    async def _write(self) -> None:
        while not self._ended:
            body = self._stream.take()
            if body is None:
                await self._wake.wait()
                self._wake.clear()
                continue
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await self._grpc.send_message(body)
            except TimeoutError:
                raise ProtocolError("DEADLINE_EXCEEDED", "the client does not read its responses") from None


def _take_lock(path: Path) -> int | None:
    """Hold `<path>.lock` until the descriptor is closed. None: the file system has no locks."""
    descriptor = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SocketInUseError(f"{path} is served by another process: give each worker its own run directory") from None
    except OSError as e:
        os.close(descriptor)
        if e.errno in _NO_LOCKS:
            return None
        raise
    return descriptor


def _remove_stale(path: Path) -> None:
    """Never waits: connecting to a UNIX socket is decided at once."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketInUseError(f"{path} exists and is no socket: remove it or choose another path")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # a full backlog: somebody listens
    raise SocketInUseError(f"somebody answers on {path}: give each worker its own run directory")
