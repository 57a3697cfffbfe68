# SPDX-License-Identifier: Apache-2.0
"""The worker's log out of the app's reach: Python's `logging` and structlog are set up once per process, by the app."""

from __future__ import annotations

import logging
import sys
from typing import cast

import structlog
from structlog.typing import FilteringBoundLogger


def private_logger(**context: object) -> FilteringBoundLogger:
    """A logger with what `sds.logs.configure` has set up, which then is taken back: the app finds both libraries as
    in a fresh interpreter, and whatever it sets up changes nothing here."""
    root = logging.getLogger()
    own = logging.Logger("worker", root.level)  # not in the registry: `disable_existing_loggers` does not find it
    own.handlers[:] = root.handlers
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    settings = structlog.get_config()
    log = structlog.wrap_logger(
        own,
        processors=settings["processors"],
        wrapper_class=settings["wrapper_class"],
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    structlog.reset_defaults()
    _forget_structlog()
    return cast(FilteringBoundLogger, log.bind(**context))


def _forget_structlog() -> None:
    """The app imports one of its own: ours does without rich (see `enclave_proxy`), which the app may want."""
    for name in [name for name in sys.modules if name.partition(".")[0] == structlog.__name__]:
        del sys.modules[name]
