# SPDX-License-Identifier: Apache-2.0
"""Every path of the client API. What they answer stands beside it by subject, in MarbleRun's words:

    client_api_state     status, quote, update log        client_api_secrets   secrets
    client_api_manifest  manifest                         client_api_updates   updates, their acknowledgement and end
    client_api_recovery  recovery                         client_api_marbles   sign-quote, monotonic counters
    client_api_xds       clients of the xDS port (ours)

The v1 forms differ in names (`StatusCode` for `code`) and in what is whose mistake: a refused manifest is a 500 error
in v2 and a 400 error in v1. Beyond MarbleRun, v2 status and quote say `"simulation": true` when attestation is
simulated and `"insecure": true` when there is none.
"""

from __future__ import annotations

from xds_server import (
    client_api_manifest,
    client_api_marbles,
    client_api_recovery,
    client_api_secrets,
    client_api_state,
    client_api_updates,
    client_api_xds,
)
from xds_server.client_api_xds import XdsView
from xds_server.http_dispatch import Routes
from xds_server.operations import Operations


def routes(operations: Operations, xds: XdsView | None = None) -> Routes:
    """All routes; everything else is an unknown path. Without an xDS server there is nothing to say about one."""
    return {
        **({} if xds is None else client_api_xds.routes(operations, xds)),
        **client_api_state.routes(operations),
        **client_api_manifest.routes(operations),
        **client_api_secrets.routes(operations),
        **client_api_updates.routes(operations),
        **client_api_recovery.routes(operations),
        **client_api_marbles.routes(operations),
    }
