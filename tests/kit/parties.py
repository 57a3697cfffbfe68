# SPDX-License-Identifier: Apache-2.0
"""Manifests of several parties: who may update them or raise a package, and what a Marble shows of its secrets."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.kit.coordinator import PACKAGE
from tests.kit.openssl_judge import openssl
from tests.kit.users import user


def document(*updaters: str, **members: object) -> dict[str, Any]:
    """`updaters` may update the manifest, and read what can be read; dave may raise the package `app`."""
    secrets: Any = members.get("Secrets") or {}
    readable = [name for name, secret in secrets.items() if secret.get("Shared") or secret.get("UserDefined")]
    writable = [name for name, secret in secrets.items() if secret.get("UserDefined")]
    people = {name: {"Certificate": pem(name), "Roles": ["update", "read", "write"]} for name in updaters}
    roles = {
        "update": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
        "raise": {"ResourceType": "Packages", "ResourceNames": ["app"], "Actions": ["UpdateSecurityVersion"]},
        "read": {"ResourceType": "Secrets", "ResourceNames": readable, "Actions": ["ReadSecret"]},
        "write": {"ResourceType": "Secrets", "ResourceNames": writable, "Actions": ["WriteSecret"]},
    }
    return {
        "Packages": {"app": PACKAGE},
        "Marbles": {"web": {"Package": "app", "Parameters": {"Env": showing(secrets)}}},
        "Users": {**people, "dave": {"Certificate": pem("dave"), "Roles": ["raise"]}},
        "Roles": roles,
    } | members


def raw(*updaters: str, **members: object) -> bytes:
    return json.dumps(document(*updaters, **members)).encode()


def raising(**packages: object) -> bytes:
    """A package update: `app=4` raises a SecurityVersion, a dictionary is a package as it is."""
    named = {name: value if isinstance(value, dict) else {"SecurityVersion": value} for name, value in packages.items()}
    return json.dumps({"Packages": named}).encode()


def showing(secrets: dict[str, dict[str, object]]) -> dict[str, str]:
    """Variables with every secret that has a value, of this generation and the one before, by name."""
    env = {}
    for name, secret in secrets.items():
        if not secret.get("UserDefined"):
            env[name] = f"{{{{ hex .Secrets.{name} }}}}"
            env[f"previous_{name}"] = f"{{{{ hex .Previous.Secrets.{name} }}}}"
    return env


def pem(name: str) -> str:
    return user(name).certificate.decode()


def certificate_pem(text: str) -> bytes:
    """A certificate as the API shows it, in base64 of DER."""
    return openssl("x509", "-inform", "DER", data=base64.b64decode(text))
