# SPDX-License-Identifier: Apache-2.0
"""Discovery (xDS and SDS), server side: pure state machines for one stream, with no socket and no clock.

    stream = DeltaStream(identifier="coordinator", nonce_prefix="7f3a-")
    stream.update(view)                  # what this client may see, again whenever it changes
    receipt = stream.receive_bytes(data) # a request, an ACK or a NACK
    while body := stream.take():         # write it; None: nothing to say until one of the two above
        ...

Map: `discovery_types` words and limits · `discovery_subscription` what is asked for · `discovery_channel` one type ·
`discovery_stream` order and nonces · `discovery_sotw`, `discovery_delta` the two variants · `discovery_wire` responses
without building messages · `discovery_retry` what was refused · `discovery_redaction` what may be repeated of a NACK ·
`discovery_client` the other end.

Sources: Envoy's "xDS REST and gRPC protocol"; where it leaves a choice, the module says which one and why.
"""

from __future__ import annotations

from sds.discovery_delta import DeltaStream
from sds.discovery_redaction import redact
from sds.discovery_retry import Retry
from sds.discovery_sotw import SotwStream
from sds.discovery_stream import Stream, nobody
from sds.discovery_types import MAX_REQUEST_BYTES, Kind, ProtocolError, Receipt, Response, TypeStatus, View

__all__ = [
    "MAX_REQUEST_BYTES",
    "DeltaStream",
    "Kind",
    "ProtocolError",
    "Receipt",
    "Response",
    "Retry",
    "SotwStream",
    "Stream",
    "TypeStatus",
    "View",
    "nobody",
    "redact",
]
