# SPDX-License-Identifier: Apache-2.0
"""TLS contexts of the mesh, as Envoy messages: who must be at the other end, and where identity and trust come from.

The names that a peer must have stand in the listener or cluster, the certificates that are trusted in the secret
(`CombinedCertificateValidationContext`): so one bundle serves every port, and a rotation of roots changes no listener.

Where any Marble may be at the other end, that is one prefix and not a list of all types, which would be types times
ports. A type that the manifest drops still matches it; what ends it is that
- every worker is told which types there are (`marbles|types`), and refuses and cuts off all others, at once;
- with an update comes a new root, and no Marble of a dropped type gets a certificate of it: when the old root has left
  the bundle, within seconds, an Envoy refuses what it has;
- after that the mark in the listener changes (`Place.types`), and an Envoy drains what it had admitted before.

No session is resumed: an Envoy that resumes one does not look at the peer's certificate again, so that an identity
could be of use after its end for as long as tickets are taken. Our own relay never resumes. Where no certificate is
asked for, there is none to skip.

Envoy keys a secret's subscription by its name and the *bytes* of the ConfigSource. Bytes that change between two
versions of this software would make every Envoy drop its certificates for a moment, so they are fixed in one place and
a test pins them.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from manifests.model import ConnectionOptions, Incoming, Manifest, Outgoing
from sds.identity import RESERVED_DOMAIN, any_marble_prefix, type_prefix, uri_names
from sds.resources import BUNDLE_NAME, IDENTITY_NAME, OFFLINE_NAME, REVOKED_NAME, TYPES_NAME
from sds.wire import envoy_pb2
from xds_server.errors import ManifestRefused

DOWNSTREAM_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
UPSTREAM_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"

_TLS_VERSIONS = {"1.2": 3, "1.3": 4}
_API_V3 = 2
_DNS, _URI = 2, 3
# Envoy's own default, written out so that it never changes by itself.
_INITIAL_FETCH_SECONDS = 15


class SnapshotError(ManifestRefused):
    """A manifest that parses but cannot be turned into listeners and clusters. The text names the entry."""


def pack(type_url: str, message: Message) -> Any:
    """An Any under Envoy's own type name; our messages have names of their own."""
    return Any(type_url=type_url, value=message.SerializeToString(deterministic=True))


def ads() -> envoy_pb2.ConfigSource:
    """Where every dynamic part comes from: the very stream that brings the resource."""
    source = envoy_pb2.ConfigSource(ads=envoy_pb2.AggregatedConfigSource(), resource_api_version=_API_V3)
    source.initial_fetch_timeout.seconds = _INITIAL_FETCH_SECONDS
    return source


def bundle_name(incoming: Incoming, manifest: Manifest) -> str:
    """The trust bundle of a port: the mesh's, or one of its own if gateways may connect to it."""
    gateways = any(peer in manifest.mesh.gateways for peer in incoming.peers or ())
    return f"{BUNDLE_NAME}|{incoming.port}" if gateways else BUNDLE_NAME


def downstream(incoming: Incoming, manifest: Manifest, trust_domain: str) -> envoy_pb2.TransportSocket:
    """Server side of a port that the worker terminates."""
    if incoming.cert:
        return _presenting(incoming)
    if incoming.peers is None:
        matchers = [_prefix(any_marble_prefix(trust_domain))]
    else:
        matchers = [_peer(peer, manifest, trust_domain) for peer in incoming.peers]
    context = envoy_pb2.DownstreamTlsContext(
        common_tls_context=_common(matchers, bundle_name(incoming, manifest), incoming.tls),
        require_client_certificate=BoolValue(value=True),
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )
    return envoy_pb2.TransportSocket(name="tls", typed_config=pack(DOWNSTREAM_TLS, context))


def _presenting(incoming: Incoming) -> envoy_pb2.TransportSocket:
    """Server side of a port for clients outside of the mesh: a certificate secret, and nothing is asked of them."""
    common = envoy_pb2.CommonTlsContext(
        tls_params=_versions(incoming.tls),
        alpn_protocols=incoming.tls.alpn,
        tls_certificate_sds_secret_configs=[envoy_pb2.SdsSecretConfig(name=incoming.cert, sds_config=ads())],
    )
    context = envoy_pb2.DownstreamTlsContext(
        common_tls_context=common, require_client_certificate=BoolValue(value=False)
    )
    return envoy_pb2.TransportSocket(name="tls", typed_config=pack(DOWNSTREAM_TLS, context))


def is_reserved_secret(name: str) -> bool:
    """Is this the SDS name of what a Marble proves itself with, or of whom it trusts or refuses?"""
    ours = (IDENTITY_NAME, BUNDLE_NAME, REVOKED_NAME, TYPES_NAME, OFFLINE_NAME)
    return name in ours or name.startswith((f"{BUNDLE_NAME}|", "spiffe://"))


def upstream(outgoing: Outgoing, manifest: Manifest, trust_domain: str, sni: str) -> envoy_pb2.TransportSocket:
    """Client side towards a peer: the named type, else the type that is addressed, else any Marble."""
    peer = outgoing.peer or (outgoing.addr if outgoing.addr in manifest.marbles else None)
    prefix = any_marble_prefix(trust_domain) if peer is None else type_prefix(trust_domain, peer)
    common = _common([_prefix(prefix)], BUNDLE_NAME, outgoing.tls)
    context = envoy_pb2.UpstreamTlsContext(common_tls_context=common, sni=sni, max_session_keys=UInt32Value(value=0))
    return envoy_pb2.TransportSocket(name="tls", typed_config=pack(UPSTREAM_TLS, context))


def _common(
    matchers: Iterable[envoy_pb2.SubjectAltNameMatcher], bundle: str, options: ConnectionOptions
) -> envoy_pb2.CommonTlsContext:
    return envoy_pb2.CommonTlsContext(
        tls_params=_versions(options),
        alpn_protocols=options.alpn,
        tls_certificate_sds_secret_configs=[envoy_pb2.SdsSecretConfig(name=IDENTITY_NAME, sds_config=ads())],
        combined_validation_context=envoy_pb2.CombinedCertificateValidationContext(
            default_validation_context=envoy_pb2.CertificateValidationContext(match_typed_subject_alt_names=matchers),
            validation_context_sds_secret_config=envoy_pb2.SdsSecretConfig(name=bundle, sds_config=ads()),
        ),
    )


def _versions(options: ConnectionOptions) -> envoy_pb2.TlsParameters:
    # The newest is written out, because Envoy's client would otherwise offer 1.2 at most.
    return envoy_pb2.TlsParameters(
        tls_minimum_protocol_version=_TLS_VERSIONS[options.min_tls], tls_maximum_protocol_version=_TLS_VERSIONS["1.3"]
    )


def _prefix(prefix: str) -> envoy_pb2.SubjectAltNameMatcher:
    return envoy_pb2.SubjectAltNameMatcher(san_type=_URI, matcher=envoy_pb2.StringMatcher(prefix=prefix))


def _peer(peer: str, manifest: Manifest, trust_domain: str) -> envoy_pb2.SubjectAltNameMatcher:
    gateway = manifest.mesh.gateways.get(peer)
    if gateway is None:
        return _prefix(type_prefix(trust_domain, peer))
    san_type, name = gateway_name(peer, gateway.certificate, trust_domain)
    return envoy_pb2.SubjectAltNameMatcher(san_type=san_type, matcher=envoy_pb2.StringMatcher(exact=name))


def gateway_name(gateway: str, certificate: x509.Certificate, trust_domain: str) -> tuple[int, str]:
    """The name by which a listener knows a gateway: kind of SAN, and the name. Raises SnapshotError.

    A URI name outside this mesh, or a DNS name in the mesh's reserved domain: any other DNS name a Marble could have in
    its own certificate just by asking for it at activation, and so pass as the gateway.
    """
    uris = uri_names(certificate)
    own = f"spiffe://{trust_domain}"
    if any(uri == own or uri.startswith(f"{own}/") for uri in uris):
        raise SnapshotError(f"gateway {gateway!r} has a certificate with a name of this mesh's Marbles")
    if len(uris) > 1 and any(uri.lower().startswith("spiffe:") for uri in uris):
        raise SnapshotError(
            f"gateway {gateway!r} has a certificate with a SPIFFE ID among {len(uris)} URI names, and workers refuse "
            "that (X509-SVID, section 2): give it the SPIFFE ID alone"
        )
    if uris:
        return _URI, uris[0]
    for name in _dns_names(certificate):
        if name.endswith(f".{RESERVED_DOMAIN}") and "*" not in name:
            return _DNS, name
    raise SnapshotError(
        f"gateway {gateway!r} is among Peers but its certificate has no URI name: a Marble could take its DNS name, "
        f"give it a URI name (such as spiffe://edge.example/gateway) or a DNS name under {RESERVED_DOMAIN}"
    )


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)
