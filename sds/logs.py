# SPDX-License-Identifier: Apache-2.0
"""Logging for every program of the mesh: one line per event, constant text, facts in fields, secrets never.

The message is a constant and what varies goes into fields, so that lines can be searched and counted. Library logs
(asyncio, aiohttp, grpclib) pass through the same formatter. In simulation, or without attestation, every line says so.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]{1,40}-----.*?(?:-----END [A-Z0-9 ]{1,40}-----|\Z)", re.DOTALL)
# A NACK text of Envoy was seen at 2.1 KB with a whole private key in it; what an operator needs is in the first words.
MAX_TEXT = 1024


def redact(text: str, limit: int = MAX_TEXT) -> str:
    """`text` without PEM blocks (complete, cut off or with escaped line ends) and at most `limit` characters long."""
    clean = _PEM.sub("[PEM removed]", text)
    return clean if len(clean) <= limit else clean[:limit] + "… [cut]"


def configure(
    level: str, fmt: Literal["json", "console"], mark: bool | str = False, stream: TextIO | None = None
) -> None:
    """Set up logging once per process, to standard error unless `stream` is given.

    `level` is a name of the logging module in any case ("debug", "INFO", …); an unknown one raises ValueError.
    `mark` is a field that every line carries with the value true: `simulation` (or just True for it), or `insecure`.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"unknown log level {level!r}: use debug, info, warning or error")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([_marker("simulation" if mark is True else mark)] if mark else []),
    ]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_formatter(fmt, shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str, **context: object) -> FilteringBoundLogger:
    """A logger with `name` and fields bound to each of its lines."""
    return cast(FilteringBoundLogger, structlog.stdlib.get_logger(name, **context))


def _formatter(fmt: str, shared: list[Processor]) -> logging.Formatter:
    renderer: Processor
    match fmt:
        case "json":
            renderer = structlog.processors.JSONRenderer()
        case "console":
            renderer = structlog.dev.ConsoleRenderer(colors=False)
        case _:
            raise ValueError(f"unknown log format {fmt!r}: use json or console")
    # Tracebacks become text before the redaction, and never carry local variables: those may be keys.
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _redact_fields,
            renderer,
        ],
    )


def _marker(field: str) -> Processor:
    def mark(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event[field] = True
        return event

    return mark


def _redact_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        event[key] = _redacted(key, value)
    return event


def _redacted(key: str, value: Any) -> Any:
    if isinstance(value, str):
        return redact(value, limit=16 * 1024 if key == "exception" else MAX_TEXT)
    if isinstance(value, bytes | bytearray | memoryview):
        # Raw bytes have no place in a log line: they are keys, quotes or payload.
        return f"[{len(value)} bytes]"
    return value
