# SPDX-License-Identifier: Apache-2.0
"""Every template of a manifest, tried without a Coordinator: dummies stand for all secrets and certificates.

What fails here fails at set-manifest too. What does not may still do so there, if it depends on the values themselves
(`if gt (len .Secrets.key.Private) 1`).
"""

from __future__ import annotations

from collections.abc import Iterator

from manifests.errors import Problem
from manifests.model import Manifest, Secret, SecretType
from manifests.template import Budget, TemplateError
from manifests.template_values import (
    DUMMY,
    MANIFEST_WORK,
    MAX_TEMPLATES,
    SecretValue,
    dummy_certificates,
    parse_template,
    secret_value,
    template_data,
    templated,
)

_CERTIFICATES = (SecretType.CERT_RSA, SecretType.CERT_ECDSA, SecretType.CERT_ED25519)


def template_problems(manifest: Manifest) -> Iterator[Problem]:
    """Everything that is wrong with the templates of files and environment, each with its place."""
    if (problem := too_large(manifest)) is not None:
        yield problem
        return
    secrets = {name: _dummy(secret) for name, secret in manifest.secrets.items()}
    data, budget = template_data(secrets, secrets, dummy_certificates()), Budget(MANIFEST_WORK)
    for marble_type, marble in manifest.marbles.items():
        for member, name, value, functions in templated(marble):
            try:
                made = parse_template(value.data, functions).render(data, functions, budget)
            except TemplateError as e:
                yield Problem(f"Marbles.{marble_type}.Parameters.{member}.{name}", str(e))
                continue
            if member == "Env" and b"\0" in made:
                yield Problem(f"Marbles.{marble_type}.Parameters.{member}.{name}", "content contains null bytes")


def too_large(manifest: Manifest) -> Problem | None:
    """More templates than are looked at."""
    total = sum(len(value.data) for marble in manifest.marbles.values() for _, _, value, _ in templated(marble))
    if total <= MAX_TEMPLATES:
        return None
    return Problem("Marbles", f"templates of {total} bytes, at most {MAX_TEMPLATES} are accepted: use NoTemplates")


def _dummy(secret: Secret) -> SecretValue:
    return secret_value(
        secret.type.value,
        size=secret.size,
        shared=secret.shared,
        user_defined=secret.user_defined,
        valid_for=secret.valid_for,
        certificate=DUMMY if secret.type in _CERTIFICATES else b"",
        private=DUMMY,
        public=DUMMY,
    )
