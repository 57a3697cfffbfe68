# SPDX-License-Identifier: Apache-2.0
"""Wire shape → domain values for who may do what: users, roles, gateways, the Coordinator's settings.

The message texts are MarbleRun's where it has one; tools match them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from manifests import model, wire
from manifests.certificates import check_gateway, load_certificate
from manifests.places import Findings

_E = TypeVar("_E", bound=StrEnum)

# Which actions exist for which kind of resource.
ACTIONS = {
    model.ResourceType.PACKAGES: (model.Action.UPDATE_SECURITY_VERSION,),
    model.ResourceType.SECRETS: (model.Action.READ_SECRET, model.Action.WRITE_SECRET),
    model.ResourceType.MANIFEST: (model.Action.UPDATE_MANIFEST,),
}


def users(items: Mapping[str, wire.UserWire], found: Findings) -> Mapping[str, model.User]:
    result: dict[str, model.User] = {}
    for name, value in items.items():
        if not value.certificate:
            found.error(f"manifest does not contain a certificate for user {name}", "Users", name, "Certificate")
            continue
        try:
            certificate = load_certificate(value.certificate)
        except ValueError as error:
            found.error(f"received invalid certificate for user {name}: {error}", "Users", name, "Certificate")
            continue
        result[name] = model.User(certificate=certificate, roles=tuple(value.roles))
    return MappingProxyType(result)


def roles(items: Mapping[str, wire.RoleWire], found: Findings) -> Mapping[str, model.Role]:
    result: dict[str, model.Role] = {}
    for name, value in items.items():
        kind = next((kind for kind in model.ResourceType if kind == value.resource_type), None)
        if kind is None:
            shown = f"{{{value.resource_type} [{' '.join(value.resource_names)}] [{' '.join(value.actions)}]}}"
            found.error(f"unrecognized resource type: {shown} for role: {name}", "Roles", name, "ResourceType")
            continue
        actions: list[model.Action] = []
        for index, text in enumerate(value.actions):
            action = any_case(ACTIONS[kind], text)
            if action is None:
                found.error(f"unknown action: {text} for type {kind} in role: {name}", "Roles", name, "Actions", index)
            else:
                actions.append(action)
        result[name] = model.Role(
            resource_type=kind, resource_names=tuple(value.resource_names), actions=tuple(actions)
        )
    return MappingProxyType(result)


def any_case(choices: tuple[_E, ...], text: str) -> _E | None:
    """The choice that `text` names when case is ignored."""
    return next((choice for choice in choices if wire.fold(choice) == wire.fold(text)), None)


def gateways(items: Mapping[str, wire.GatewayWire], found: Findings) -> Mapping[str, model.Gateway]:
    result: dict[str, model.Gateway] = {}
    for name, value in items.items():
        try:
            certificate = load_certificate(value.certificate)
            check_gateway(certificate)
        except ValueError as error:
            found.error(f"certificate of gateway {name}: {error}", "Mesh", "Gateways", name, "Certificate")
            continue
        result[name] = model.Gateway(certificate=certificate)
    return MappingProxyType(result)


def config(value: wire.ConfigWire, found: Findings) -> model.Config:
    mode = next((mode for mode in model.SealMode if mode == value.seal_mode), None)
    if mode is None:
        found.error(f"unknown seal mode: {value.seal_mode}", "Config", "SealMode")
    gates: set[model.FeatureGate] = set()
    for index, text in enumerate(value.feature_gates):
        gate = any_case(tuple(model.FeatureGate), text)
        if gate is None:
            found.error(f"unknown feature gate: {text}", "Config", "FeatureGates", index)
        else:
            gates.add(gate)
    return model.Config(
        seal_mode=mode or model.SealMode.DEFAULT,
        feature_gates=frozenset(gates),
        update_threshold=value.update_threshold,
        recovery_threshold=value.recovery_threshold,
        rotate_root_secret=value.rotate_root_secret,
    )
