# SPDX-License-Identifier: Apache-2.0
"""The rules of an activation that need neither clock nor network: who asks, for what, and what the answer holds.

`Coordinator.activate` calls them in the order of the protocol: type and package, quote, budget, UUID, request, answer.
"""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.serialization import Encoding

from manifests.errors import Problem
from manifests.model import Manifest, Marble, Package
from sds.ca import CertificateAuthority, pem_of
from sds.material import Identity
from xds_server.errors import InvalidUuid, VerificationFailed
from xds_server.http_json import encode

ROOT_CA = "MARBLE_PREDEFINED_ROOT_CA"
CHAIN = "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"
PRIVATE_KEY = "MARBLE_PREDEFINED_PRIVATE_KEY"
COORDINATOR_ROOT_CA = "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"
TTLS_CONFIG = "MARBLE_TTLS_CONFIG"

_HEX32 = re.compile(r"[0-9a-fA-F]{32}")
_DASHED = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MAX_SHOWN = 80
# Clients take 4 MiB. Certificates, key and the names of everything else fit into the last of them.
MAX_PARAMETERS = 3 * 1024 * 1024
# Marble root, leaf with claims and key, once per connection in the TTLS configuration.
_TTLS_ENTRY = 6 * 1024


@dataclass(frozen=True, slots=True)
class ActivationAsk:
    """What a Marble sent. `certificate_der` is its TLS client certificate, whose key it proved to hold."""

    quote: bytes = field(repr=False)
    csr: bytes = field(repr=False)
    marble_type: str
    uuid: str
    certificate_der: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """What an activated Marble receives; `env` holds its private key. `served` are the certificate secrets that its
    worker will present, by name; they reach it over SDS."""

    files: Mapping[str, bytes] = field(repr=False)
    env: Mapping[str, bytes] = field(repr=False)
    argv: tuple[str, ...]
    served: Mapping[str, Identity] = field(default_factory=dict, repr=False)


def find_marble(manifest: Manifest, marble_type: str) -> tuple[Marble, Package]:
    """The manifest's entries for a type; raises VerificationFailed."""
    marble = manifest.marbles.get(marble_type)
    if marble is None:
        raise VerificationFailed("unknown marble type requested", "unknown_marble_type")
    package = manifest.packages.get(marble.package)
    if package is None:
        raise VerificationFailed(f'undefined package "{marble.package}"', "undefined_package")
    return marble, package


def oversized(manifest: Manifest) -> Iterator[Problem]:
    """Marbles whose answer no client would take: better known when the manifest is set than at each activation."""
    for name, marble in manifest.marbles.items():
        parameters = marble.parameters
        size = sum(len(argument.encode()) for argument in parameters.argv)
        size += sum(len(key) + len(value.data) for key, value in (*parameters.files.items(), *parameters.env.items()))
        tags = [manifest.tls[tag] for tag in marble.tls]
        size += _TTLS_ENTRY * sum(len(tag.incoming) + len(tag.outgoing) for tag in tags)
        if size > MAX_PARAMETERS:
            yield Problem(f"Marbles.{name}", f"parameters of about {size} bytes, at most {MAX_PARAMETERS} can be sent")


def check_budget(marble_type: str, marble: Marble, activations: int) -> None:
    """MaxActivations counts per type, restarts included; 0 is no limit."""
    if 0 < marble.max_activations <= activations:
        raise VerificationFailed(
            f'reached max activations count ({marble.max_activations}) for marble type "{marble_type}"',
            "max_activations",
        )


def normalise_uuid(text: str) -> str:
    """The lower-case 36-character form of a UUID given as that, as 32 hex digits, in braces or as `urn:uuid:`.

    The nil UUID is refused: to MarbleRun it means "shared", so an instance that bears it would be everybody.
    """
    body = text
    if len(text) == 45 and text[:9].lower() == "urn:uuid:":
        body = text[9:]
    elif len(text) == 38 and text[0] == "{" and text[-1] == "}":
        body = text[1:-1]
    if not (_DASHED.fullmatch(body) or (body is text and _HEX32.fullmatch(body))):
        raise InvalidUuid(
            f"{text[:_MAX_SHOWN]!r} is none of the accepted forms, expected xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
        )
    value = uuids.UUID(body)
    if value.int == 0:
        raise InvalidUuid("the nil UUID names no instance: send a random one")
    return str(value)


def make_grant(
    manifest: Manifest,
    marble: Marble,
    ca: CertificateAuthority,
    identity: Identity,
    rendered: tuple[Mapping[str, bytes], Mapping[str, bytes]],
    served: Mapping[str, Identity],
) -> Grant:
    """Files, environment and arguments; `rendered` are files and environment, `served` the certificate secrets that
    ports present. The predefined variables overwrite what
    the manifest says under their names."""
    files, env = rendered[0], dict(rendered[1])
    if marble.tls:
        env[TTLS_CONFIG] = ttls_config(manifest, marble, ca, identity, served)
    env[ROOT_CA] = pem_of(ca.marble_root)
    env[CHAIN] = identity.chain
    env[PRIVATE_KEY] = identity.key.pem
    env[COORDINATOR_ROOT_CA] = pem_of(ca.root)
    return Grant(files, env, marble.parameters.argv, served)


def ttls_config(
    manifest: Manifest,
    marble: Marble,
    ca: CertificateAuthority,
    identity: Identity,
    served: Mapping[str, Identity],
) -> bytes:
    """Which connections an EdgelessRT runtime wraps in TLS itself: compact JSON, keys sorted, as it reads it.

    `served` are the certificate secrets that ports present in place of the identity.
    Our own worker ignores the variable: it receives the same tags as xDS resources.
    """
    credentials = _credentials(ca, identity)
    incoming: dict[str, object] = {}
    outgoing: dict[str, object] = {}
    for tag in (manifest.tls[name] for name in marble.tls):
        for entry in tag.incoming:
            own = _credentials(ca, served[entry.cert]) if entry.cert else credentials
            incoming[f"*:{entry.port}"] = _sorted(own | {"clientAuth": not entry.disable_client_auth})
        outgoing |= {f"{entry.addr}:{entry.port}": credentials for entry in tag.outgoing}
    tls = {"Incoming": _sorted(incoming), "Outgoing": _sorted(outgoing)}
    return encode({"tls": tls}).rstrip(b"\n")


def _credentials(ca: CertificateAuthority, identity: Identity) -> dict[str, object]:
    return {
        "cacrt": pem_of(ca.marble_root).decode("ascii"),
        "clicrt": identity.leaf.public_bytes(Encoding.PEM).decode("ascii"),
        "clikey": identity.key.pem.decode("ascii"),
    }


def _sorted(members: dict[str, object]) -> dict[str, object]:
    return dict(sorted(members.items()))
