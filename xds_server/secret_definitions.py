# SPDX-License-Identifier: Apache-2.0
"""From a secret's definition in the manifest to the empty value of that kind, and when two definitions are the same."""

from __future__ import annotations

from manifests.model import Secret as Definition
from sds.secret_template import SecretTemplate
from sds.secrets import Secret, SecretKind
from xds_server.errors import CoordinatorError


class SecretsRefused(CoordinatorError):
    """A secret that cannot be generated, or must not be stored. The text names the secret, never a value."""


def same_definition(old: Definition, new: Definition) -> bool:
    """Do two manifests mean the same secret by a name? Type, Size, Shared, UserDefined and the days of life count."""
    return (old.type, old.size, old.shared, old.user_defined, effective_valid_for(old)) == (
        new.type,
        new.size,
        new.shared,
        new.user_defined,
        effective_valid_for(new),
    )


def effective_valid_for(definition: Definition) -> int:
    """Days of life as recorded with the secret: a generated certificate without ValidFor and NotAfter has 365."""
    if definition.user_defined or not SecretKind(definition.type).is_certificate:
        return definition.valid_for
    end = definition.cert.not_after if definition.cert is not None else None
    return SecretTemplate(valid_for=definition.valid_for, not_after=end).effective_valid_for


def empty(definition: Definition) -> Secret:
    """A secret of this definition without a value."""
    return Secret(
        kind=SecretKind(definition.type),
        size=definition.size,
        shared=definition.shared,
        user_defined=definition.user_defined,
        valid_for=effective_valid_for(definition),
    )
