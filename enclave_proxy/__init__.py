# SPDX-License-Identifier: Apache-2.0
"""The worker: attests, starts the app, and carries its traffic in mTLS."""

from __future__ import annotations

import sds.unpainted  # noqa: F401 - before any of the worker's modules can load structlog
