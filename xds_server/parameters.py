# SPDX-License-Identifier: Apache-2.0
"""Files and environment of a Marble: the manifest's templates (see `manifests.template_values`), filled in.

Errors name function and place, never a value: they travel to whoever starts the Marble.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from manifests.errors import Problem
from manifests.model import FileValue, Manifest, Marble
from manifests.template import Budget, Struct, TemplateError
from manifests.template_check import too_large
from manifests.template_values import (
    DUMMY,
    ENV_FUNCTIONS,
    FILE_FUNCTIONS,
    MANIFEST_WORK,
    Functions,
    SecretValue,
    dummy_certificates,
    parse_template,
    secret_value,
    template_data,
    templated,
)
from sds.ca import CertificateAuthority
from sds.material import Identity
from sds.secrets import Secret, SecretKind
from xds_server.errors import CoordinatorError

# Work for one Marble's templates, in the template engine's unit: at worst half a second at each activation.
_MARBLE_WORK = 256 * 1024 * 1024


class ParametersError(CoordinatorError):
    """A template that cannot be filled in. The text names file or variable, place and function."""


@dataclass(frozen=True, slots=True)
class TemplateData:
    """What templates see. `marble_certificate` None, `ca` None: not known yet, dummies stand for them."""

    secrets: Mapping[str, Secret] = field(repr=False)
    previous_secrets: Mapping[str, Secret] = field(repr=False)
    marble_certificate: Identity | None
    ca: CertificateAuthority | None


def render(marble: Marble, data: TemplateData) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Files and environment with all templates filled in. Raises ParametersError."""
    if next(templated(marble), None) is None:
        parameters = marble.parameters
        files, env = ({name: value.data for name, value in of.items()} for of in (parameters.files, parameters.env))
        return files, env
    values, budget = _values(data), Budget(_MARBLE_WORK)
    files = {
        name: _one(value, values, budget, FILE_FUNCTIONS, f'parsing secrets for file "{name}"')
        for name, value in marble.parameters.files.items()
    }
    env = {}
    for name, value in marble.parameters.env.items():
        env[name] = _one(value, values, budget, ENV_FUNCTIONS, f'parsing secrets for env variable "{name}"')
        if b"\0" in env[name]:
            raise ParametersError(f"env variable: {name}: content contains null bytes")
    return files, env


def dry_run(manifest: Manifest, secrets: Mapping[str, Secret]) -> None:
    """Fill in every template of every Marble with these secrets, and with dummies for what does not exist yet: unset
    user-defined secrets and everything under .MarbleRun. Raises ParametersError for the first that fails."""
    filled = {name: _filled(secret) for name, secret in secrets.items()}
    values, budget = _values(TemplateData(filled, filled, None, None)), Budget(MANIFEST_WORK)
    for marble_type, marble in manifest.marbles.items():
        for name, value in marble.parameters.files.items():
            _one(value, values, budget, FILE_FUNCTIONS, f"in Marble {marble_type}: file {name}")
        for name, value in marble.parameters.env.items():
            where = f"in Marble {marble_type}: env variable: {name}"
            if b"\0" in _one(value, values, budget, ENV_FUNCTIONS, where):
                raise ParametersError(f"{where}: content contains null bytes")


def check_templates(manifest: Manifest) -> Iterator[Problem]:
    """What Go's templates can do and ours cannot, wherever a manifest uses it. Other faults are `dry_run`'s."""
    if (problem := too_large(manifest)) is not None:
        yield problem
        return
    for marble_type, marble in manifest.marbles.items():
        for member, name, value, functions in templated(marble):
            try:
                parse_template(value.data, functions)
            except TemplateError as e:
                if e.unsupported:
                    yield Problem(f"Marbles.{marble_type}.Parameters.{member}.{name}", str(e))


def secrets_used(manifest: Manifest, marble: Marble) -> tuple[frozenset[str], frozenset[str]]:
    """The secrets that an instance needs, of the current and of the previous generation: those that its templates can
    name, and those that its ports present. All of them where a template does not say which."""
    every = frozenset(manifest.secrets)
    current: set[str] = {entry.cert for tag in marble.tls for entry in manifest.tls[tag].incoming if entry.cert}
    previous: set[str] = set()
    for _, _, value, functions in templated(marble):
        try:
            template = parse_template(value.data, functions)
        except TemplateError:
            return every, every  # rendering will say what is wrong
        names, old_names = template.names("Secrets"), template.names("Previous", "Secrets")
        current |= every if names is None else names
        previous |= every if old_names is None else old_names
    return every & current, every & previous


# ---- rendering


def _one(value: FileValue, data: Struct, budget: Budget, functions: Functions, where: str) -> bytes:
    if not value.templated:
        return value.data
    try:
        return parse_template(value.data, functions).render(data, functions, budget)
    except TemplateError as e:
        raise ParametersError(f"{where}: {e}") from e


# ---- data


def _values(data: TemplateData) -> Struct:
    secrets, previous = ({name: _secret(s) for name, s in of.items()} for of in (data.secrets, data.previous_secrets))
    return template_data(secrets, previous, _marblerun(data))


def _secret(secret: Secret) -> SecretValue:
    return secret_value(
        secret.kind.value,
        size=secret.size,
        shared=secret.shared,
        user_defined=secret.user_defined,
        valid_for=secret.valid_for,
        certificate=secret.certificate or b"",
        private=secret.private,
        public=secret.public,
    )


def _marblerun(data: TemplateData) -> dict[str, SecretValue]:
    ca, own = data.ca, data.marble_certificate
    if ca is None or own is None:
        return dummy_certificates()
    kind = SecretKind.CERT_ECDSA.value
    marble_certificate = secret_value(
        kind,
        certificate=own.leaf.public_bytes(Encoding.DER),
        public=own.leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        # Our own PKCS#8 PEM: loading the key to write it again would take longer than all the rest.
        private=base64.b64decode(b"".join(own.key.pem.strip().split(b"\n")[1:-1])),
    )
    roots = {"RootCA": ca.marble_root, "CoordinatorRoot": ca.root, "CoordinatorIntermediate": ca.intermediate}
    holders = {name: secret_value(kind, certificate=c.public_bytes(Encoding.DER)) for name, c in roots.items()}
    return {**holders, "MarbleCert": marble_certificate}


def _filled(secret: Secret) -> Secret:
    if not secret.user_defined or secret.public:
        return secret
    certificate = DUMMY if secret.kind.is_certificate else None
    return replace(secret, certificate=certificate, private=DUMMY, public=DUMMY)
