# SPDX-License-Identifier: Apache-2.0
"""What is in force, as JSON for a human. Every member is picked by hand; no object is ever dumped as it is.

So a key can only get here if somebody writes its name below. Certificates are public, and are shown by their facts.
"""

from __future__ import annotations

from dataclasses import asdict

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from enclave_proxy.health import Health
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.relay_config import DnsTarget, Inbound, Outbound, PeerRule, TlsOptions
from enclave_proxy.session import Session, short_name
from sds.identity import marble_identity, uri_names
from sds.logs import redact
from sds.material import Identity, TrustBundle
from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET

Json = dict[str, object]


def config_dump(health: Health) -> Json:
    """Who we are, what the Coordinator said, and what the relay does about it."""
    dump: Json = {
        "marble": {"type": health.marble_type, "uuid": health.uuid, "simulation": health.simulation},
        "not_ready": health.not_ready(),
        "processes": _processes(health),
        "capture": _capture(health),
        "app": asdict(health.app),
        "started_offline": None if health.started_offline is None else health.started_offline.isoformat(),
    }
    if health.session is not None:
        dump["control_plane"] = _control_plane(health.session)
        dump["relay"] = _relay(health.session)
    return dump


def _processes(health: Health) -> Json | None:
    if health.fleet is None:
        return None
    return {"configured": health.fleet.size, "restarted": health.fleet.restarted, "pids": dict(health.fleet.processes)}


def _capture(health: Health) -> Json | None:
    if health.capture is None or (rules := health.capture.rules) is None:
        return None
    return {
        "port": rules.capture,
        "outgoing": sorted(rules.outgoing),
        "incoming": {str(port): own for port, own in rules.incoming},
        "closed": sorted(rules.closed),
        "users_left_alone": rules.exempt,
    }


def certificates(store: IdentityStore) -> Json:
    """The public parts of what we show and whom we believe."""
    credentials = store.credentials
    return {
        "identity": [_certificate(certificate) for certificate in credentials.identity.certificates],
        "attested": marble_identity(credentials.identity.leaf).claims,
        "bundle": _bundle(credentials.bundle),
        "coordinator_root": _bundle(credentials.coordinator_root),
        "withheld": [{"secret": entry.name, "reason": entry.reason} for entry in store.withheld],
    }


def _control_plane(session: Session) -> Json:
    status = session.status
    return {
        "connected": status.connected,
        "attempts": status.attempts,
        "updates": dict(status.updates),
        "nacks": dict(status.nacks),
        "last_nacks": {
            kind: {"at": nack.at.isoformat(), "reason": redact(nack.reason)} for kind, nack in status.last_nacks.items()
        },
        "last_error": redact(status.last_error),
        "not_in_force": redact(session.obstacle),
        "listeners_waiting": session.waiting_listeners(),
        "offline_start_seconds": None if (allowed := session.offline_start) is None else allowed.total_seconds(),
        "secrets": {name: _secret(secret) for name, secret in sorted(session.pushed.secrets.items())},
        "resources": {
            short_name(kind): {
                "subscribed": sorted(session.client.wanted(kind)),
                "versions": dict(session.client.held(kind)),
            }
            for kind in (CLUSTER, ENDPOINT, SECRET, LISTENER)
        },
    }


def _secret(secret: Identity | TrustBundle) -> Json:
    if isinstance(secret, Identity):
        return {"kind": "identity", "not_after": secret.not_after.isoformat()}
    return {
        "kind": "bundle",
        "not_after": min(certificate.not_valid_after_utc for certificate in secret.certificates).isoformat(),
    }


def _relay(session: Session) -> Json | None:
    config = session.applied
    if config is None:
        return None
    return {
        "inbound": [_inbound(entry) for entry in config.inbound],
        "outbound": [_outbound(entry) for entry in config.outbound],
    }


def _inbound(entry: Inbound) -> Json:
    return {
        "name": entry.name,
        "listen": str(entry.bind),
        "app": str(entry.upstream),
        "client_certificate_required": entry.require_client_certificate,
        "peers": _peers(entry.peers),
        "tls": _tls(entry.tls),
        "identity": _certificate(entry.identity.leaf),
        "bundle": None if entry.bundle is None else _bundle(entry.bundle),
    }


def _outbound(entry: Outbound) -> Json:
    targets = [entry.endpoints] if isinstance(entry.endpoints, DnsTarget) else entry.endpoints
    return {
        "name": entry.name,
        "listen": str(entry.listen),
        "endpoints": [str(target) for target in targets],
        "resolved_by": "dns" if isinstance(entry.endpoints, DnsTarget) else "coordinator",
        "sni": entry.sni,
        "peers": _peers(entry.peer),
        "tls": _tls(entry.tls),
        "identity": _certificate(entry.identity.leaf),
        "bundle": _bundle(entry.bundle),
    }


def _tls(options: TlsOptions) -> Json:
    return {"minimum": options.minimum, "alpn": list(options.alpn)}


def _peers(rule: PeerRule) -> list[str]:
    return [str(matcher) for matcher in rule.matchers] or ["any certificate of the bundle"]


def _bundle(bundle: TrustBundle) -> list[Json]:
    return [_certificate(certificate) for certificate in bundle.certificates]


def _certificate(certificate: x509.Certificate) -> Json:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "uris": uri_names(certificate),
        "serial": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
    }
