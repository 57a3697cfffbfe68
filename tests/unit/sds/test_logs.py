# SPDX-License-Identifier: Apache-2.0
"""Log lines: one shape for ours and for libraries', simulation on each, no key in any."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from sds.logs import configure, get_logger, redact
from tests.kit.pki import marble, shared_ca


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_is_json_with_its_fields(out: io.StringIO) -> None:
    configure("info", "json", stream=out)
    get_logger("relay").info("connection refused", reason="untrusted")
    (line,) = lines(out)
    assert (line["event"], line["reason"], line["level"], line["logger"]) == (
        "connection refused",
        "untrusted",
        "info",
        "relay",
    )
    assert "timestamp" in line
    assert "simulation" not in line


def test_in_simulation_every_line_says_so(out: io.StringIO) -> None:
    configure("info", "json", mark=True, stream=out)
    get_logger("x").info("a")
    logging.getLogger("aiohttp").warning("b %s", "c")
    assert [(line["event"], line["simulation"]) for line in lines(out)] == [("a", True), ("b c", True)]


def test_lines_below_the_level_are_not_written(out: io.StringIO) -> None:
    configure("WARNING", "json", stream=out)
    get_logger("x").info("a")
    logging.getLogger("y").info("b")
    assert out.getvalue() == ""


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_no_key_gets_into_a_line(out: io.StringIO, fmt: Literal["json", "console"]) -> None:
    configure("info", fmt, stream=out)
    key = marble(shared_ca()).key.pem
    body = key.decode().splitlines()[1]
    log = get_logger("x")
    log.info("fields", text=f"rejected: {key.decode()}", raw=key, escaped=repr(key))
    try:
        raise ValueError(f"bad {key.decode()}")
    except ValueError:
        log.exception("failed")
    logging.getLogger("lib").error("failed with %s", key.decode())
    assert out.getvalue().count("PEM removed") >= 4
    assert body not in out.getvalue()


def test_text_is_cut_and_pem_removed_even_when_cut_off() -> None:
    assert redact("a -----BEGIN PRIVATE KEY-----\nMIIE") == "a [PEM removed]"
    assert redact("x" * 2000).startswith("x" * 1024 + "…")


def test_unknown_levels_and_formats_are_named() -> None:
    with pytest.raises(ValueError, match="loud"):
        configure("loud", "json")
    with pytest.raises(ValueError, match="xml"):
        configure("info", "xml")  # type: ignore[arg-type]
