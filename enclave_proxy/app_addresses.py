# SPDX-License-Identifier: Apache-2.0
"""Where an app listens and dials, as environment variables: for servers and clients that take UNIX sockets by setting.

MARBLEMESH_LISTEN_<PORT>          unix:<path>      listen here for what peers send to <PORT> (Incoming)
MARBLEMESH_DIAL_<ADDR>_<PORT>     unix:<path>      connect here to reach the peer (Outgoing); ADDR in capitals, each
                                                   character that is no letter or digit an underscore
"""

from __future__ import annotations

import re
from collections import Counter

from enclave_proxy.relay_config import RelayConfig, UnixAddress

LISTEN = "MARBLEMESH_LISTEN_"
DIAL = "MARBLEMESH_DIAL_"


def app_addresses(config: RelayConfig | None) -> dict[str, str]:
    """What is in force as variables; none without a configuration. Two peers whose names would be one are left out."""
    if config is None:
        return {}
    dials = [(_dial_name(route.name), str(route.listen)) for route in config.outbound]
    count = Counter(name for name, _ in dials)
    found = {f"{LISTEN}{route.bind.port}": str(route.upstream) for route in config.inbound}
    return found | {name: value for name, value in dials if name and count[name] == 1}


def server_settings(config: RelayConfig | None) -> dict[str, str]:
    """What gunicorn and uvicorn read by themselves, if there is just one socket to listen on: no flag is needed."""
    sockets = [] if config is None else [r.upstream for r in config.inbound if isinstance(r.upstream, UnixAddress)]
    if len(sockets) != 1:
        return {}
    return {"GUNICORN_CMD_ARGS": f"--bind={sockets[0]}", "UVICORN_UDS": sockets[0].path}


def _dial_name(resource: str) -> str:
    """`outbound|<addr>|<port>`; empty for a listener that somebody has named otherwise."""
    kind, _, rest = resource.partition("|")
    return DIAL + re.sub(r"[^A-Z0-9]", "_", rest.upper()) if kind == "outbound" else ""
