# SPDX-License-Identifier: Apache-2.0
"""What a Coordinator would push, for tests of the worker: real snapshots, and messages to spoil by hand."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.message import Message

from manifests.parse import parse
from sds.ca import CertificateAuthority
from sds.wire import envoy_pb2 as pb
from tests.kit.pki import shared_ca
from xds_server.snapshot import Snapshot

PACKAGE = {"SignerID": "ab" * 32, "ProductID": 1, "SecurityVersion": 1}
TLS = {
    "web": {"Incoming": [{"Port": "8080"}], "Outgoing": [{"Addr": "db", "Port": "5432"}]},
    "db": {"Incoming": [{"Port": "5432", "Peers": ["web"]}]},
}


def snapshot(tls: dict[str, Any] | None = None, ca: CertificateAuthority | None = None, **mesh: Any) -> Snapshot:
    """A mesh of `web` and `db`; `web` talks to `db`."""
    document: dict[str, Any] = {
        "Packages": {"p": PACKAGE},
        "Marbles": {"web": {"Package": "p", "TLS": ["web"]}, "db": {"Package": "p", "TLS": ["db"]}},
        "TLS": tls or TLS,
    }
    if mesh:
        document["Mesh"] = mesh
    return Snapshot(parse(json.dumps(document).encode()), ca or shared_ca())


def listener(bind: str = "127.0.0.1") -> pb.Listener:
    """The inbound listener of `web`, to be changed."""
    return pb.Listener.FromString(snapshot().marble_routes("web", bind).listeners["inbound|8080"].body)


def plain_listener() -> pb.Listener:
    """The outbound listener of `web`."""
    return pb.Listener.FromString(snapshot().marble_routes("web", "127.0.0.1").listeners["outbound|db|5432"].body)


def cluster(name: str = "outbound|db|5432") -> pb.Cluster:
    """A cluster of `web`: the app's, or the one to `db`."""
    return pb.Cluster.FromString(snapshot().marble_routes("web", "127.0.0.1").clusters[name].body)


def repack(packed: PackedAny, message: Message) -> None:
    """Put a changed message back into its Any."""
    packed.value = message.SerializeToString()
