# SPDX-License-Identifier: Apache-2.0
"""A Marble's files and environment for one activation. (signatures of the templates; templated values are refused)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from manifests.model import FileValue, Manifest, Marble
from sds.ca import CertificateAuthority
from sds.material import Identity
from sds.secrets import Secret
from xds_server.errors import CoordinatorError


class ParametersError(CoordinatorError):
    """A file or variable that cannot be rendered; the text names it, never a secret's value."""


@dataclass(frozen=True, slots=True)
class TemplateData:
    """What templates may speak of."""

    secrets: Mapping[str, Secret] = field(repr=False)
    previous_secrets: Mapping[str, Secret] = field(repr=False)
    marble_certificate: Identity | None
    ca: CertificateAuthority


def render(marble: Marble, _data: TemplateData) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Files and environment; raises ParametersError."""
    return _plain("file", marble.parameters.files), _plain("env variable", marble.parameters.env)


def dry_run(manifest: Manifest, _secrets: Mapping[str, Secret]) -> None:
    """Render everything once with dummy values; raises ParametersError."""
    for name, marble in manifest.marbles.items():
        try:
            _plain("file", marble.parameters.files)
            _plain("env variable", marble.parameters.env)
        except ParametersError as e:
            raise ParametersError(f"in Marble {name}: {e}") from None


def _plain(what: str, values: Mapping[str, FileValue]) -> dict[str, bytes]:
    for name, value in values.items():
        if value.templated:
            raise ParametersError(f'parsing secrets for {what} "{name}": templates are not supported by this version')
    return {name: value.data for name, value in values.items()}
