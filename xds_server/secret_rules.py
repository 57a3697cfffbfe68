# SPDX-License-Identifier: Apache-2.0
"""The life of the manifest's secrets: made when it is set, for each instance, and anew at updates. Pure but for chance.

What the store holds for every secret of the manifest (MarbleRun's convention):

    user-defined              what a user uploaded, empty before that
    shared                    the secret itself
    per Marble                a *placeholder* of the same kind, so that templates can be tried; never handed out

`for_instance` puts the real ones in the placeholders' place: keys are derived from the root secret, certificates are
new at every activation. RSA keys take their time (see sds.secret_certificates): call these functions in a thread.

Differences from MarbleRun, where its behaviour can only be a slip: a certificate whose definition names no ValidFor is
recorded with 365 days there and here, but it does not therefore count as changed at the next full update, so that its
old value is available under `.Previous.Secrets` as documented; and a definition that only spells 365 out is unchanged.
"""

from __future__ import annotations

import secrets as random
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from cryptography import x509

from manifests.model import Manifest
from manifests.model import Secret as Definition
from sds.ca import CertificateAuthority
from sds.errors import SdsError
from sds.secret_certificates import issue
from sds.secret_derivation import derive_symmetric
from sds.secret_template import SecretTemplate
from sds.secrets import Secret, SecretKind
from xds_server.parameters import secrets_used
from xds_server.records import Records
from xds_server.secret_definitions import SecretsRefused as SecretsRefused
from xds_server.secret_definitions import empty, same_definition
from xds_server.secret_templates import template_of
from xds_server.secret_upload import parse_upload as parse_upload
from xds_server.secret_upload import to_json as to_json

# Bytes of the root secret, from which per-Marble keys are derived.
ROOT_SECRET_SIZE = 32


def new_root_secret() -> bytes:
    """What per-Marble keys of a new deployment, or after RotateRootSecret, are derived from."""
    return random.token_bytes(ROOT_SECRET_SIZE)


def generate_shared(manifest: Manifest, ca: CertificateAuthority, now: datetime) -> dict[str, Secret]:
    """All secrets as the store holds them under a new manifest. Raises SecretsRefused.

    The previous generation of a new manifest is the same mapping.
    """
    return {name: _stored(name, definition, manifest, ca, now) for name, definition in manifest.secrets.items()}


def for_instance(
    records: Records, manifest: Manifest, marble_type: str, uuid: str, now: datetime
) -> tuple[dict[str, Secret], dict[str, Secret]]:
    """The secrets of one instance: current and previous generation. Raises SecretsRefused.

    Same instance (UUID in lower-case 36-character form), type and name: same symmetric key, whenever it is asked for.
    Per-Marble secrets that the Marble's templates and ports cannot name are left out: an instance that uses 3 secrets
    does not wait until 997 others are made, among them RSA keys.
    """
    marble = manifest.marbles[marble_type]
    binding = "" if marble.disable_secret_binding else marble_type
    used, used_previous = secrets_used(manifest, marble)

    def own(stored: Mapping[str, Secret], root_secret: bytes, names: frozenset[str]) -> dict[str, Secret]:
        who = (root_secret, uuid, binding)
        return {
            name: secret if is_stored(secret) else _for_instance(name, secret, manifest, records.ca, now, who)
            for name, secret in stored.items()
            if is_stored(secret) or name in names
        }

    return (
        own(records.secrets, records.root_secret, used),
        own(records.previous_secrets, records.previous_root_secret, used_previous),
    )


def instance_secret(
    name: str, stored: Secret, records: Records, manifest: Manifest, marble_type: str, uuid: str, now: datetime
) -> Secret:
    """One per-Marble secret of the current generation. Raises SecretsRefused."""
    binding = "" if manifest.marbles[marble_type].disable_secret_binding else marble_type
    return _for_instance(name, stored, manifest, records.ca, now, (records.root_secret, uuid, binding))


def is_stored(secret: Secret) -> bool:
    """Is the value in the store the secret itself, and not a placeholder?"""
    return secret.shared or secret.user_defined


def after_update(
    old: Records, old_manifest: Manifest, new_manifest: Manifest, new_ca: CertificateAuthority, now: datetime
) -> tuple[dict[str, Secret], dict[str, Secret]]:
    """Current and previous secrets after a full update. Raises SecretsRefused.

        definition         unchanged                                                     changed or new
        user-defined       kept                                                          empty
        symmetric          kept; with RotateRootSecret new, and the old one is previous  new
        certificate        new, and the old one is previous                              new

    What is kept keeps its previous value too; the previous value of what is changed or new is the new one. `Cert` is
    not part of the comparison. The root secret itself is the caller's: with RotateRootSecret in the new manifest it
    becomes the previous one, which is what per-Marble keys follow.
    """
    rotate = new_manifest.config.rotate_root_secret
    current: dict[str, Secret] = {}
    previous: dict[str, Secret] = {}
    for name, definition in new_manifest.secrets.items():
        before, known = old_manifest.secrets.get(name), old.secrets.get(name)
        if before is None or known is None or not same_definition(before, definition):
            current[name] = previous[name] = _stored(name, definition, new_manifest, new_ca, now)
        elif definition.user_defined or not (known.kind.is_certificate or rotate):
            current[name], previous[name] = known, old.previous_secrets.get(name, known)
        else:
            current[name], previous[name] = _stored(name, definition, new_manifest, new_ca, now), known
    return current, previous


def regenerate_shared_certificates(
    secrets: Mapping[str, Secret], manifest: Manifest, new_ca: CertificateAuthority, now: datetime
) -> dict[str, Secret]:
    """The current secrets after a package update, whose new CA must also be that of shared certificates.

    They get new keys and keep their end of life. Everything else stays. Raises SecretsRefused.
    """
    found = dict(secrets)
    for name, secret in secrets.items():
        if secret.kind.is_certificate and secret.shared and not secret.user_defined and secret.certificate:
            end = x509.load_der_x509_certificate(secret.certificate).not_valid_after_utc
            template = replace(_template(name, manifest), not_after=end)
            found[name] = replace(_issue(name, template, secret, new_ca, now), valid_for=secret.valid_for)
    return found


def _stored(name: str, definition: Definition, manifest: Manifest, ca: CertificateAuthority, now: datetime) -> Secret:
    secret = empty(definition)
    if secret.user_defined:
        return secret
    if secret.kind is SecretKind.SYMMETRIC_KEY:
        # A per-Marble one is a placeholder here: any key of the right size will do.
        key = random.token_bytes(secret.size // 8)
        return replace(secret, private=key, public=key)
    return _issue(name, _template(name, manifest), secret, ca, now)


def _for_instance(
    name: str,
    secret: Secret,
    manifest: Manifest,
    ca: CertificateAuthority,
    now: datetime,
    who: tuple[bytes, str, str],
) -> Secret:
    if not secret.kind.is_certificate:
        root_secret, uuid, binding = who
        try:
            key = derive_symmetric(root_secret, uuid, name, binding, secret.size)
        except SdsError as e:
            raise SecretsRefused(f"secret {name}: {e}") from e
        return replace(secret, private=key, public=key)
    return _issue(name, _template(name, manifest), secret, ca, now)


def _template(name: str, manifest: Manifest) -> SecretTemplate:
    try:
        return template_of(manifest.secrets[name], manifest)
    except SdsError as e:
        raise SecretsRefused(f"secret {name}: {e}") from e


def _issue(name: str, template: SecretTemplate, like: Secret, ca: CertificateAuthority, now: datetime) -> Secret:
    try:
        return issue(template, like.kind, like.size, ca, now, shared=like.shared)
    except SdsError as e:
        raise SecretsRefused(f"secret {name}: {e}") from e
