# SPDX-License-Identifier: Apache-2.0
"""Is a Secret fit to be published? Pure: a resource and the time in, nothing or `SecretRefused` out.

Asked of the very bytes that would leave, and more strictly than a stock proxy asks: Envoy 1.40 takes expired
certificates, a leaf as CA, a chain with garbage behind it, a validation context without any CA (and then trusts
everybody), a list of revoked certificates that cannot be parsed or does not cover every CA (and then trusts nobody).

What kind of secret a name stands for is fixed where the mesh itself gives the names:

    default                                      an identity
    spiffe://<domain>/<path>                     the identity of exactly this name
    ROOTCA, ROOTCA|<port>, spiffe://<domain>     whom to believe
    <word>|<word>                                a list of ours
    anything else                                whatever a manifest gives that name
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from google.protobuf.message import DecodeError

from sds.identity import IdentityError, SpiffeId, spiffe_id_of
from sds.keys import MAX_KEY_PEM, PrivateKey, SigningKey
from sds.material import (
    Identity,
    MaterialError,
    TrustBundle,
    authority_key_id,
    check_bundle,
    check_chain,
    check_dates,
    check_leaf,
    check_server,
    subject_key_id,
)
from sds.resources import BUNDLE_NAME, IDENTITY_NAME, MAX_SECRET, SECRET, Resource, read_secret, unknown_field
from sds.secret_revocation import check_crl, check_ocsp
from sds.spiffe_validator import CONFIG, VALIDATOR
from sds.wire import secret_pb2 as pb

# What can be wrong, in one word each; the last: no secret could be made of what there is.
UNUSABLE = "unusable"
PARTS = (
    *("kind", "size", "malformed", "field", "name", "key", "chain", "ocsp", "bundle", "crl", "validator"),
    *("ticket_keys", "list", "generic", UNUSABLE),
)
TICKET_KEY_BYTES = 80
MAX_TICKET_KEYS = 16
_URI = 3

_IDENTITY, _TRUST, _LIST = "tls_certificate", "validation_context", "generic_secret"


class SecretRefused(MaterialError):
    """This secret must not be published. `part` says what is wrong with it in one word, for metrics; the text never
    quotes content."""

    def __init__(self, part: str, text: str) -> None:
        self.part = part
        super().__init__(text)


def check_secret(resource: Resource, now: datetime) -> None:
    """Raise SecretRefused unless the secret may be published at `now` (aware)."""
    secret = _parse(resource)
    kind = secret.WhichOneof("type")
    if (slot := _slot(resource.name)) is not None and kind != slot:
        raise SecretRefused("kind", f"secret holds {_words(kind)}, expected {_words(slot)} under this name")
    match kind:
        case "tls_certificate":
            _check_certificate(resource.name, secret.tls_certificate, now, mesh=slot == _IDENTITY)
        case "validation_context":
            pinned = resource.name.startswith(f"{BUNDLE_NAME}|")
            _check_trust(secret.validation_context, now, pinned_leaves=pinned)
        case "session_ticket_keys":
            _check_ticket_keys(secret.session_ticket_keys)
        case "generic_secret" if slot == _LIST:
            with _checking("list"):
                read_secret(resource.body)
        case "generic_secret":
            _inline(secret.generic_secret, "secret", "generic")
        case _:
            raise SecretRefused("kind", "secret holds nothing")


def check_issued(spiffe_id: str, identity: Identity, anchors: frozenset[bytes], now: datetime) -> None:
    """The same for an identity that our own CA has just made and inspected, 20 us instead of 600: what time and place
    can still make wrong. It must be that of `spiffe_id`; `anchors` are the subject key ids of the bundle that its
    holder gets, so that nobody is given a certificate whose root it does not have yet. Raises SecretRefused."""
    with _checking("chain"):
        check_dates(identity.leaf, "leaf", now)
        check_leaf(identity.leaf)
        if authority_key_id(identity.leaf) not in anchors:
            raise MaterialError("identity is of a root that is not in the bundle that its holder gets")
    _check_name(spiffe_id, identity)


def anchors_of(bundle: Resource) -> frozenset[bytes]:
    """The subject key ids of a bundle that is published. Raises SecretRefused if it is none."""
    with _checking("bundle"):
        certificates = TrustBundle(_inline(_parse(bundle).validation_context, "trusted_ca", "bundle")).certificates
        return frozenset(key for certificate in certificates if (key := subject_key_id(certificate)) is not None)


def _parse(resource: Resource) -> pb.Secret:
    if resource.type_url != SECRET:
        raise SecretRefused("kind", "resource is no secret")
    if len(resource.body) > MAX_SECRET:
        raise SecretRefused("size", f"secret of {len(resource.body)} bytes, at most {MAX_SECRET} are published")
    try:
        secret = pb.Secret.FromString(resource.body)
    except DecodeError:
        raise SecretRefused("malformed", "secret is not a valid protobuf message") from None
    if unknown := unknown_field(secret):
        raise SecretRefused("field", f"secret has the field {unknown}, which nobody here has checked")
    if not secret.name or secret.name != resource.name:
        raise SecretRefused("name", "secret calls itself by another name than its resource")
    return secret


def _slot(name: str) -> str | None:
    """What a name stands for; None: it does not say."""
    if name == IDENTITY_NAME:
        return _IDENTITY
    if name == BUNDLE_NAME or name.startswith(f"{BUNDLE_NAME}|"):
        return _TRUST
    if name.startswith("spiffe://"):
        return _IDENTITY if _spiffe_id(name).path else _TRUST
    return _LIST if "|" in name else None


def _spiffe_id(name: str) -> SpiffeId:
    try:
        return SpiffeId.parse(name)
    except IdentityError as e:
        raise SecretRefused("name", f"secret is named like a SPIFFE ID and is none: {e}") from None


def _words(kind: str | None) -> str:
    return "nothing" if kind is None else f"a {kind.replace('_', ' ')}"


# ---- certificates


def _check_certificate(name: str, certificate: pb.TlsCertificate, now: datetime, *, mesh: bool) -> None:
    chain = _inline(certificate, "certificate_chain", "chain")
    with _checking("key"):
        key = _private_key(certificate)
        key.load()
    with _checking("chain"):
        identity = Identity(chain, key)
        check_chain(identity, now)
        if mesh:
            check_leaf(identity.leaf)
            if name != IDENTITY_NAME:
                _check_name(name, identity)
        else:
            check_server(identity.leaf)
    if certificate.HasField("ocsp_staple"):
        with _checking("ocsp"):
            check_ocsp(_inline(certificate, "ocsp_staple", "ocsp"), identity.leaf, now)


def _check_name(name: str, identity: Identity) -> None:
    try:
        own = str(spiffe_id_of(identity.leaf))
    except IdentityError as e:
        raise SecretRefused("name", f"certificate of an identity: {e}") from None
    if own != name:
        raise SecretRefused("name", "certificate has another SPIFFE ID than the secret is named after")


def _private_key(certificate: pb.TlsCertificate) -> PrivateKey:
    pem = _inline(certificate, "private_key", "key")
    if not certificate.HasField("password"):
        return PrivateKey(pem)
    if len(pem) > MAX_KEY_PEM:
        raise MaterialError(f"private key of {len(pem)} bytes, at most {MAX_KEY_PEM} are accepted")
    try:
        key = load_pem_private_key(pem, _inline(certificate, "password", "key"))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise MaterialError("private key cannot be read with the password that comes with it") from None
    if not isinstance(key, SigningKey):
        raise MaterialError("private key type cannot sign a TLS handshake: use ECDSA, Ed25519 or RSA")
    return PrivateKey(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


# ---- whom to believe


def _check_trust(context: pb.CertificateValidationContext, now: datetime, *, pinned_leaves: bool) -> None:
    if context.HasField("custom_validator_config"):
        _check_validator(context, now)
        return
    pem = _inline(context, "trusted_ca", "bundle")
    with _checking("bundle"):
        bundle = TrustBundle(pem)
        check_bundle(bundle, now, pinned_leaves=pinned_leaves)
    if context.HasField("crl"):
        with _checking("crl"):
            crl = _inline(context, "crl", "crl")
            check_crl(crl, bundle, now, leaves_only=context.only_verify_leaf_cert_crl)


def _check_validator(context: pb.CertificateValidationContext, now: datetime) -> None:
    """A SPIFFE validator; the only kind that is known here."""
    custom = context.custom_validator_config
    if custom.name != VALIDATOR or custom.typed_config.type_url != CONFIG:
        raise SecretRefused("validator", "validation context has a custom validator other than the SPIFFE one")
    if context.HasField("trusted_ca") or context.HasField("crl"):
        raise SecretRefused("validator", "validation context has a SPIFFE validator, and a CA or CRL that it ignores")
    if any(matcher.san_type != _URI for matcher in context.match_typed_subject_alt_names):
        raise SecretRefused("validator", "SPIFFE validator looks at URI names only, others are matched by nobody")
    try:
        config = pb.SpiffeCertValidatorConfig.FromString(custom.typed_config.value)
    except DecodeError:
        raise SecretRefused("validator", "configuration of the SPIFFE validator is not a valid message") from None
    if unknown := unknown_field(config):
        raise SecretRefused("field", f"SPIFFE validator has the field {unknown}, which nobody here has checked")
    names = [domain.name for domain in config.trust_domains]
    if not names or len(set(names)) != len(names):
        raise SecretRefused("validator", "SPIFFE validator has no trust domain, or one of them twice")
    for domain in config.trust_domains:
        with _checking("validator"):
            try:
                SpiffeId(domain.name)  # bare: with a scheme in front Envoy takes it, and then nobody is believed
            except IdentityError as e:
                raise MaterialError(f"SPIFFE validator: {e}") from None
            check_bundle(TrustBundle(_inline(domain, "trust_bundle", "validator")), now)


# ---- the others


def _check_ticket_keys(keys: pb.TlsSessionTicketKeys) -> None:
    if not 1 <= len(keys.keys) <= MAX_TICKET_KEYS:
        raise SecretRefused("ticket_keys", f"{len(keys.keys)} session ticket keys, expected 1 to {MAX_TICKET_KEYS}")
    for source in keys.keys:
        if (size := len(source.inline_bytes or source.inline_string.encode())) != TICKET_KEY_BYTES:
            raise SecretRefused("ticket_keys", f"session ticket key of {size} bytes, expected {TICKET_KEY_BYTES}")


_Holder = pb.TlsCertificate | pb.CertificateValidationContext | pb.TrustDomain | pb.GenericSecret


def _inline(holder: _Holder, field: str, part: str) -> bytes:
    source: pb.DataSource = getattr(holder, field)
    kind = source.WhichOneof("specifier")
    content = b"" if kind is None else source.inline_bytes or source.inline_string.encode()
    if not content:
        raise SecretRefused(part, f"secret has no {field.replace('_', ' ')}, expected inline bytes or an inline string")
    return content


@contextmanager
def _checking(part: str) -> Iterator[None]:
    try:
        yield
    except SecretRefused:
        raise
    except MaterialError as e:
        raise SecretRefused(part, str(e)) from None
