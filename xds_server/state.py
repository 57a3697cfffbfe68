# SPDX-License-Identifier: Apache-2.0
"""Where the Coordinator stands, and the words that clients read about it."""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """MarbleRun's numbers: probes and command line tools compare them. A state only moves forward."""

    UNINITIALIZED = 0
    RECOVERY = 1
    ACCEPTING_MANIFEST = 2
    ACCEPTING_MARBLES = 3


MESSAGES = {
    State.UNINITIALIZED: "Coordinator is not initialized.",
    State.RECOVERY: (
        "Coordinator is in recovery mode. Either upload a key to unseal the saved state, or set a new manifest. "
        "For more information on how to proceed, consult the documentation."
    ),
    State.ACCEPTING_MANIFEST: "Coordinator is ready to accept a manifest.",
    State.ACCEPTING_MARBLES: "Coordinator is running correctly and ready to accept marbles.",
}
