# SPDX-License-Identifier: Apache-2.0
"""From the environment that the manifest attests to the configuration of the Envoy inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography import x509

from marblemesh.demo.envoy_config import Endpoint, Inside, Upstream
from marblemesh.demo.errors import DemoError
from sds.identity import marble_identity


def inside_settings(env: Mapping[str, str]) -> Inside:
    """Read `ENVOY_*`, `LISTEN`, the app's outgoing sockets and what the worker added.

    `ENVOY_INBOUND` host:port to end mTLS on; `ENVOY_ALLOW` the Marble types that may connect (comma-separated);
    `ENVOY_OUTBOUND` type=host:port,...: for each the app's socket is in the variable named like the type in capitals;
    `ENVOY_STATS` host:port for Prometheus. Raises DemoError that names the variable.
    """
    run_dir = Path(_get(env, "MARBLEMESH_RUN_DIR"))
    trust_domain = _trust_domain(_get(env, "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"))
    upstreams = []
    for entry in _get(env, "ENVOY_OUTBOUND").split(","):
        marble_type, _, address = entry.partition("=")
        listen = run_dir / _socket(env, marble_type.upper())
        upstreams.append(Upstream(marble_type, listen, _endpoint("ENVOY_OUTBOUND", address), marble_type))
    return Inside(
        inbound=_endpoint("ENVOY_INBOUND", _get(env, "ENVOY_INBOUND")),
        app=run_dir / _socket(env, "LISTEN"),
        trust_domain=trust_domain,
        allowed=tuple(_get(env, "ENVOY_ALLOW").split(",")),
        upstreams=tuple(upstreams),
        sds_socket=Path(_get(env, "MARBLEMESH_SDS_SOCKET")),
        admin_socket=run_dir / "envoy.sock",
        stats=_endpoint("ENVOY_STATS", _get(env, "ENVOY_STATS")),
    )


def _get(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "")
    if not value:
        raise DemoError(f"{name} is not set: start this program as the child of web's worker")
    return value


def _socket(env: Mapping[str, str], name: str) -> str:
    scheme, _, path = _get(env, name).partition(":")
    if scheme != "unix" or not path:
        raise DemoError(f"{name} is {env[name]!r}, expected unix:PATH")
    return path


def _endpoint(name: str, text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise DemoError(f"{name} has {text!r}, expected HOST:PORT")
    return Endpoint(host, int(port))


def _trust_domain(chain: str) -> str:
    leaf = x509.load_pem_x509_certificates(chain.encode())[0]
    return marble_identity(leaf).spiffe_id.trust_domain
