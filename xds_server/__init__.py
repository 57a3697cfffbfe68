# SPDX-License-Identifier: Apache-2.0
"""The Coordinator: attests Marbles, issues their identities, and configures the mesh over xDS."""

from __future__ import annotations

import sds.unpainted  # noqa: F401 - before any of the Coordinator's modules can load structlog
