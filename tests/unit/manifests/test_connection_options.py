# SPDX-License-Identifier: Apache-2.0
"""How TLS is spoken, by entry of a TLS tag: the oldest version and the protocols."""

from __future__ import annotations

import re
from typing import Any

import pytest

from manifests.errors import ManifestError
from manifests.model import ConnectionOptions
from manifests.parse import parse
from tests.kit.manifests import manifest, raw

IN = {"Port": "80"}
OUT = {"Addr": "db", "Port": "80"}


def tags(**entries: Any) -> dict[str, Any]:
    return manifest(TLS={"t": entries})


def test_tls_1_3_and_no_protocol_unless_the_entry_says_otherwise() -> None:
    asked = {"MinTLSVersion": "1.2", "ALPN": ["h2", "http/1.1"]}
    tag = parse(raw(tags(Incoming=[IN, {"Port": "81", **asked}], Outgoing=[OUT | asked]))).tls["t"]
    wanted = ConnectionOptions(min_tls="1.2", alpn=("h2", "http/1.1"))
    assert [entry.tls for entry in tag.incoming] == [ConnectionOptions(min_tls="1.3", alpn=()), wanted]
    assert [entry.tls for entry in tag.outgoing] == [wanted]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"MinTLSVersion": "1.1"}, 'TLS \'1.1\' cannot be the oldest version: want "1.3" or "1.2"'),
        ({"MinTLSVersion": "TLSv1.2"}, "(at TLS.t.Incoming[0].MinTLSVersion)"),
        ({"ALPN": ["h2", "a,b"]}, "'a,b' is no protocol name: want 1 to 255 ASCII characters without blank and comma"),
        ({"ALPN": [""]}, "(at TLS.t.Incoming[0].ALPN[0])"),
        ({"ALPN": ["x" * 256]}, "is no protocol name"),
        ({"ALPN": ["h2", "h2"]}, "want at most 16 protocols, each once (at TLS.t.Incoming[0].ALPN)"),
        ({"ALPN": [f"p{number}" for number in range(17)]}, "want at most 16 protocols"),
    ],
)
def test_what_no_connection_could_have_is_refused_with_its_place(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ManifestError, match=re.escape(reason)):
        parse(raw(tags(Incoming=[IN | options])))
    with pytest.raises(ManifestError, match=re.escape(reason.replace("Incoming", "Outgoing"))):
        parse(raw(tags(Outgoing=[OUT | options])))
