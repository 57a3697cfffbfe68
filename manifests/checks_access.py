# SPDX-License-Identifier: Apache-2.0
"""Rules for users, roles and the thresholds that count them."""

from __future__ import annotations

from manifests.places import Findings
from manifests.wire import ManifestWire, RoleWire, fold


def check_users(document: ManifestWire, found: Findings) -> None:
    owners: dict[str, str] = {}
    for name, user in document.users.items():
        other = owners.setdefault(user.certificate, name)
        if user.certificate and other != name:
            found.error(
                f"manifest contains the same certificate for users {other} and {name}", "Users", name, "Certificate"
            )
        for index, role in enumerate(user.roles):
            if role not in document.roles:
                found.error(
                    f"manifest specifies role {role} for user {name}, but role does not exist",
                    *("Users", name, "Roles", index),
                )


def check_roles(document: ManifestWire, found: Findings) -> None:
    for name, role in document.roles.items():
        at = ("Roles", name, "ResourceNames")
        match role.resource_type:
            case "Packages" | "Secrets":
                defined = document.packages if role.resource_type == "Packages" else document.secrets
                for index, resource in enumerate(role.resource_names):
                    if resource not in defined:
                        found.error(
                            f"role {name}: resource {resource} of type {role.resource_type} is not defined in manifest",
                            *(*at, index),
                        )
                    elif role.resource_type == "Secrets":
                        _check_secret(document, name, role, index, found)
            case "Manifest" if role.resource_names:
                found.error(f"role {name}: resource names are not allowed for type Manifest", *at)
            case _:
                pass


def _check_secret(document: ManifestWire, name: str, role: RoleWire, index: int, found: Findings) -> None:
    resource = role.resource_names[index]
    secret = document.secrets[resource]
    actions = {fold(action) for action in role.actions}
    at = ("Roles", name, "ResourceNames", index)
    if "writesecret" in actions and not secret.user_defined:
        found.error(
            f"manifest specifies write permission for role {name} and secret {resource}, "
            "but secret is not user-defined",
            *at,
        )
    if "readsecret" in actions and not secret.user_defined and not secret.shared:
        found.error(f"manifest specifies read permission for role {name} and per-marble-unique secret {resource}", *at)


def check_config(document: ManifestWire, found: Findings) -> None:
    config = document.config
    updaters = sum(
        any(_may_update(document.roles.get(role)) for role in user.roles) for user in document.users.values()
    )
    if updaters < config.update_threshold:
        found.error(
            f"not enough users with manifest update permissions ({updaters}) "
            f"to meet the threshold of {config.update_threshold}",
            *("Config", "UpdateThreshold"),
        )
    at = ("Config", "RecoveryThreshold")
    keys = len(document.recovery_keys)
    if keys < config.recovery_threshold:
        found.error(
            f"not enough recovery keys ({keys}) defined to meet the recovery threshold of {config.recovery_threshold}",
            *at,
        )
    if config.recovery_threshold == 1:
        found.error("invalid recovery threshold: if set, threshold must be at least 2", *at)


def _may_update(role: RoleWire | None) -> bool:
    if role is None or role.resource_type != "Manifest":
        return False
    return any(fold(action) == "updatemanifest" for action in role.actions)
