# SPDX-License-Identifier: Apache-2.0
"""How a Marble starts and ends, as its operator sets it. All times in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from enclave_proxy.restarts import RestartPolicy

# A Kubernetes pod has 30 s from SIGTERM to SIGKILL unless it says otherwise: both of ours fit into that.
DEFAULT_DRAIN = 10.0
DEFAULT_APP_GRACE = 10.0
# What a large JVM takes to listen.
DEFAULT_APP_TIMEOUT = 30.0
# A Coordinator that restarts is back within this; without it a worker must not serve what may be out of date.
DEFAULT_OFFLINE_AFTER = 10.0
# Each relay process costs 30 MB, and there are no machines where more of them than this would do more.
MAX_CONCURRENCY = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleSettings:
    """`drain`: peers' connections at the end, or of a listener that goes; `app_grace`: the app, from its signal to
    SIGKILL; `app_timeout`: how long readiness waits for the app to listen, 0: not at all; `offline_after`: how long the
    Coordinator is asked before the sealed configuration is used."""

    drain: float = DEFAULT_DRAIN
    app_grace: float = DEFAULT_APP_GRACE
    app_timeout: float = DEFAULT_APP_TIMEOUT
    restart: RestartPolicy = RestartPolicy.NEVER
    offline_after: float = DEFAULT_OFFLINE_AFTER


def parse_seconds(text: str) -> float:
    """Raises ValueError."""
    seconds = float(text)
    if not 0 <= seconds <= 3600:
        raise ValueError(f"{text} is not within 0..3600 seconds")
    return seconds


def parse_restart(text: str) -> RestartPolicy:
    """Raises ValueError."""
    try:
        return RestartPolicy(text.lower())
    except ValueError:
        raise ValueError(f"{text!r} is not one of {', '.join(RestartPolicy)}") from None


def parse_concurrency(text: str) -> int:
    """Raises ValueError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_CONCURRENCY:
        raise ValueError(f"{text!r} is not a number of processes within 1..{MAX_CONCURRENCY}")
    return int(text)
