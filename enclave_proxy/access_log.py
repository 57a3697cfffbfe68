# SPDX-License-Identifier: Apache-2.0
"""A line of JSON for each connection that has ended or was refused, to a file or standard output. Off by default.

    relay ─► at most MAX_WAITING lines ─► every FLUSH seconds to a thread ─► one write of whole lines

Whatever the disk or the reader of a pipe does, the relay does not wait: what does not fit is dropped and counted. Each
relay process appends by itself, in writes that the kernel keeps apart (O_APPEND for files, PIPE_BUF for pipes), so that
all share one file. One that was renamed or removed is made anew, which is all that rotation needs; no signal is spent
on it, because a hang-up is the app's.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from queue import SimpleQueue

from structlog.typing import FilteringBoundLogger

from enclave_proxy.errors import StartError

# Lines on their way at most, of half a kilobyte each: several seconds of all the connections that a core can make.
MAX_WAITING = 8192
# Seconds between two writes.
FLUSH = 0.1
# Bytes of one write: PIPE_BUF of Linux (pipe(7)), up to which writes of several processes do not mix.
MAX_WRITE = 4096
# Seconds that the last lines may take.
LAST_WORDS = 2.0

# What turns it on, as errors name it.
ACCESS_LOG = "EDG_MARBLE_ACCESS_LOG (--access-log)"
STANDARD_OUTPUT = "-"
Line = dict[str, object]


def parse_destination(text: str) -> str | None:
    """`off` is None; a path is made independent of the directory in which other processes run. Raises ValueError."""
    if not text:
        raise ValueError("is empty: want a path, - or off")
    return None if text == "off" else text if text == STANDARD_OUTPUT else str(Path(text).absolute())


class AccessLog:
    """Made by `access_log`. `add` is called on the running event loop's thread."""

    def __init__(self, path: str, descriptor: int, log: FilteringBoundLogger) -> None:
        self.lost = 0
        """lines that were dropped, because there were too many or they could not be written"""
        self.written = 0
        self._path, self._descriptor, self._log = path, descriptor, log
        self._lines: list[Line] = []
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._batches: SimpleQueue[list[Line] | None] = SimpleQueue()
        self._told = ""
        self._torn = False  # what was written last is the beginning of a line
        # A daemon: a reader that takes nothing must not keep the worker from ending.
        self._thread = threading.Thread(target=self._write_all, name="access log", daemon=True)
        self._thread.start()

    def add(self, line: Line) -> None:
        """Write a line, soon. Never waits, never fails."""
        if self._waiting >= MAX_WAITING:
            self.lost += 1
            return
        self._waiting += 1
        self._lines.append(line)
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH, self._flush)

    async def close(self) -> None:
        """Write what is left, for a bounded time."""
        if self._timer is not None:
            self._timer.cancel()
        self._flush()
        self._batches.put(None)
        await asyncio.to_thread(self._thread.join, LAST_WORDS)

    def _flush(self) -> None:
        self._timer = None
        batch, self._lines = self._lines, []
        self._batches.put(batch)

    # ---- in the thread

    def _write_all(self) -> None:
        while (batch := self._batches.get()) is not None:
            lost = self._write(batch)
            try:
                self._loop.call_soon_threadsafe(self._done, len(batch), lost)
            except RuntimeError:
                break  # the loop has ended, and nobody counts any more
        os.close(self._descriptor)

    def _done(self, size: int, lost: int) -> None:
        self._waiting -= size
        self.lost += lost
        self.written += size - lost

    def _write(self, batch: list[Line]) -> int:
        """How many of the lines were lost."""
        left = len(batch)
        try:
            if self._path != STANDARD_OUTPUT and not _is(self._path, self._descriptor):
                fresh = _opened(self._path)
                os.close(self._descriptor)
                self._descriptor, self._torn = fresh, False
            for lines, data in _blocks(batch):
                self._put(b"\n" + data if self._torn else data)
                left -= lines
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if reason != self._told:
                self._log.warning("access log cannot be written, lines are lost", path=self._path, reason=reason)
            self._told = reason
            return left
        self._told = ""
        return 0

    def _put(self, data: bytes) -> None:
        """All of it, or an OSError; then the next line begins on a line of its own."""
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        finally:
            if done:
                self._torn = data[done - 1 : done] != b"\n"


@asynccontextmanager
async def access_log(path: str | None, log: FilteringBoundLogger) -> AsyncIterator[AccessLog | None]:
    """The log at `path` (`-`: standard output), None for none. Raises StartError with what is in the way."""
    if path is None:
        yield None
        return
    opened = AccessLog(path, _opened_or_refused(path), log)
    try:
        yield opened
    finally:
        await opened.close()


def refuse_unwritable(path: str | None) -> None:
    """So that a wrong path is seen at once, and not when there is an identity. Raises StartError."""
    if path is not None and not _is_pipe(path):  # whose reader would take it for the end
        os.close(_opened_or_refused(path))


def _is_pipe(path: str) -> bool:
    try:
        return Path(path).is_fifo()
    except OSError:
        return False


def _opened_or_refused(path: str) -> int:
    try:
        return _opened(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            why = "it is a symbolic link, and who may change that is not known: give the file itself"
        else:
            why = error.strerror or type(error).__name__
        raise StartError(
            f"{ACCESS_LOG}: cannot write to {path!r}: {why}; standard output is '-', and 'off' is none"
        ) from error


def _opened(path: str) -> int:
    if path == STANDARD_OUTPUT:
        return os.dup(sys.stdout.fileno())
    # A FIFO that nobody reads is refused (ENXIO) instead of waited for; who is at the other end of a link is not known.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    os.set_blocking(descriptor, True)
    return descriptor


def _is(path: str, descriptor: int) -> bool:
    """Whether the open file still has this name."""
    try:
        named = Path(path).lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))


def _blocks(batch: list[Line]) -> Iterator[tuple[int, bytes]]:
    """The lines in as few writes as may be, each of whole lines: their number and their bytes."""
    count, data = 0, b""
    for line in batch:
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if count and len(data) + len(text) > MAX_WRITE:
            yield count, data
            count, data = 0, b""
        count, data = count + 1, data + text
    if count:
        yield count, data
