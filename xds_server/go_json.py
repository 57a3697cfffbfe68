# SPDX-License-Identifier: Apache-2.0
"""The manifest's entries as MarbleRun keeps them in its state: Go structures in JSON, default field names, Go's order.

Written so that the format is MarbleRun's. Not read back, but for a package's effective security version: the raw
manifest, which is stored beside them, says the same and says all of it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

from cryptography.hazmat.primitives.serialization import Encoding

from manifests.model import Action, FileValue, Infrastructure, Manifest, Marble, Package, Role, TlsTag, User
from sds.secrets import Secret

Json = dict[str, "Json"] | list["Json"] | str | int | bool | None


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def manifest_entries(manifest: Manifest) -> Iterator[tuple[str, Json]]:
    """Key → value of everything that a manifest alone decides; packages are not among it."""
    for name, infrastructure in manifest.infrastructures.items():
        yield f"infrastructure:{name}", _infrastructure(infrastructure)
    for name, marble in manifest.marbles.items():
        yield f"marble:{name}", _marble(marble)
    for name, tag in manifest.tls.items():
        yield f"TLS:{name}", _tls(tag)
    for name, user in manifest.users.items():
        yield f"user:{name}", _user(name, user, manifest.roles)


def package(value: Package, security_version: int | None) -> Json:
    return {
        "Debug": value.debug,
        "UniqueID": (value.unique_id or b"").hex(),
        "SignerID": (value.signer_id or b"").hex(),
        "ProductID": value.product_id,
        "SecurityVersion": security_version,
        "AcceptedTCBStatuses": _list(value.accepted_tcb_statuses),
        "AcceptedAdvisories": _list(value.accepted_advisories),
    }


def secret(value: Secret) -> Json:
    return {
        "Type": value.kind.value,
        "Size": value.size,
        "Shared": value.shared,
        "UserDefined": value.user_defined,
        "Cert": None if value.certificate is None else base64_text(value.certificate),
        "ValidFor": value.valid_for,
        "Private": base64_text(value.private) if value.private else None,
        "Public": base64_text(value.public) if value.public else None,
    }


def _list(items: tuple[str, ...]) -> Json:
    """Go writes a list that was never given as null."""
    return list(items) if items else None


def _infrastructure(value: Infrastructure) -> Json:
    return {
        "CPUSVN": base64_text(value.cpusvn),
        "QESVN": value.qesvn,
        "PCESVN": value.pcesvn,
        "RootCA": base64_text(value.root_ca),
    }


def _marble(value: Marble) -> Json:
    return {
        "Package": value.package,
        "MaxActivations": value.max_activations,
        "Parameters": {
            "Files": {name: _file(file) for name, file in value.parameters.files.items()},
            "Env": {name: _file(file) for name, file in value.parameters.env.items()},
            "Argv": _list(value.parameters.argv),
        },
        "TLS": _list(value.tls),
        "DisableSecretBinding": value.disable_secret_binding,
    }


def _file(value: FileValue) -> Json:
    try:
        data, encoding = value.data.decode("utf-8"), "string"
    except UnicodeDecodeError:
        data, encoding = base64_text(value.data), "base64"
    return {"Data": data, "Encoding": encoding, "NoTemplates": not value.templated and b"{{" in value.data}


def _tls(value: TlsTag) -> Json:
    return {
        "Outgoing": [{"Port": item.port, "Addr": item.addr} for item in value.outgoing],
        "Incoming": [
            {"Port": item.port, "Cert": item.cert, "DisableClientAuth": item.disable_client_auth}
            for item in value.incoming
        ],
    }


def _user(name: str, value: User, roles: Mapping[str, Role]) -> Json:
    granted: dict[Action, dict[str, Json]] = {}
    for role in value.roles:
        for action in roles[role].actions:
            granted.setdefault(action, {}).update(dict.fromkeys(roles[role].resource_names, True))
    return {
        "Name": name,
        "Certificate": base64_text(value.certificate.public_bytes(Encoding.DER)),
        "Permissions": {
            action.value: {"PermissionID": action.value, "ResourceID": dict(names)} for action, names in granted.items()
        },
    }
