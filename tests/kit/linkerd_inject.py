# SPDX-License-Identifier: Apache-2.0
"""What Linkerd's injector does to a pod (linkerd2 edge-26.8, chart defaults): a JSON patch, and the workload after it.

An emulator, because `linkerd inject --manual` needs a cluster. The layouts are those of the published golden files:
native sidecars (the default since 2.20), legacy ones, and either with the CNI plugin in place of the init container.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.kit.linkerd_rules import ADMIN, CONTROL, INBOUND, OUTBOUND, PROXY_UID

Json = dict[str, Any]
_CONFIG = "config.linkerd.io/"
_OPAQUE = "25,587,3306,4444,5432,6379,9300,11211"
_SKIPPED = "4567,4568"
_IMAGE = "cr.l5d.io/linkerd/proxy:edge-26.8.1"
_VOLUMES: Json = {
    "linkerd-proxy-init-xtables-lock": {"emptyDir": {}},
    "linkerd-identity-end-entity": {"emptyDir": {"medium": "Memory"}},
    "linkerd-identity-token": {
        "projected": {
            "sources": [
                {
                    "serviceAccountToken": {
                        "path": "linkerd-identity-token",
                        "expirationSeconds": 86400,
                        "audience": "identity.l5d.io",
                    }
                }
            ]
        }
    },
}
_PLACES = {"Pod": (), "CronJob": ("spec", "jobTemplate", "spec", "template")}
_FOREIGN = ("linkerd-proxy", "istio-proxy", "linkerd-init", "istio-init")
_FOREIGN_IMAGES = (
    "cr.l5d.io/linkerd/proxy:",
    "gcr.io/istio-release/proxyv2:",
    "cr.l5d.io/linkerd/proxy-init:",
    "gcr.io/istio-release/proxy_init:",
)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the proxy comes into the pod."""

    native: bool = True
    cni: bool = False

    def __str__(self) -> str:
        return ("native" if self.native else "legacy") + ("-cni" if self.cni else "")


LAYOUTS = (Layout(), Layout(native=False), Layout(cni=True), Layout(native=False, cni=True))


def inject(workload: Json, layout: Layout) -> Json:
    """A copy with the proxy in it; an equal copy if Linkerd leaves it alone (also what has the proxy already)."""
    done = copy.deepcopy(workload)
    for operation in patch(workload, layout):
        _apply(done, operation)
    return done


def patch(workload: Json, layout: Layout) -> list[Json]:
    """The RFC 6902 patch of the webhook, `add` operations only."""
    place = _PLACES.get(workload["kind"], ("spec", "template"))
    template = workload
    for name in place:
        template = template[name]
    if not injectable(template):
        return []
    root = "".join(f"/{name}" for name in place)
    return list(_operations(workload, template, root, layout))


def injectable(template: Json) -> bool:
    spec = template["spec"]
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    present = [*spec.get("containers", []), *spec.get("initContainers", [])]
    foreign = any(
        item["name"] in _FOREIGN or str(item.get("image", "")).startswith(_FOREIGN_IMAGES) for item in present
    )
    wanted = annotations.get("linkerd.io/inject") in ("enabled", "ingress")
    return wanted and not foreign and not spec.get("hostNetwork")


def _operations(workload: Json, template: Json, root: str, layout: Layout) -> Iterator[Json]:
    metadata = template.get("metadata") or {}
    spec = template["spec"]
    kind = workload["kind"].lower()
    labels = {"linkerd.io/control-plane-ns": "linkerd", "linkerd.io/workload-ns": "default"}
    if kind != "pod":
        labels[f"linkerd.io/proxy-{kind}"] = workload["metadata"]["name"]
    annotations = {
        "linkerd.io/created-by": "linkerd/proxy-injector edge-26.8.1",
        "linkerd.io/proxy-version": "edge-26.8.1",
        "linkerd.io/trust-root-sha256": "a" * 64,
    }
    for member, values in (("labels", labels), ("annotations", annotations)):
        if member not in metadata:
            yield _add(f"{root}/metadata/{member}", {})
        for name, value in values.items():
            yield _add(f"{root}/metadata/{member}/{_escaped(name)}", value)
    if "volumes" not in spec:
        yield _add(f"{root}/spec/volumes", [])
    for name, source in _VOLUMES.items():
        if name != "linkerd-proxy-init-xtables-lock" or not layout.cni:
            yield _add(f"{root}/spec/volumes/-", {"name": name, **source})
    if "initContainers" not in spec:
        yield _add(f"{root}/spec/initContainers", [])
    config = {key.removeprefix(_CONFIG): value for key, value in (metadata.get("annotations") or {}).items()}
    first = _validator() if layout.cni else _init(config)
    if layout.native:
        yield _add(f"{root}/spec/initContainers/0", first)
        yield _add(f"{root}/spec/initContainers/1", _proxy(spec, config, native=True))
    else:
        yield _add(f"{root}/spec/initContainers/-", first)
        yield _add(f"{root}/spec/containers/0", _proxy(spec, config, native=False))


def _init(config: Json) -> Json:
    inbound, outbound = (config.get(f"skip-{side}-ports", _SKIPPED) for side in ("inbound", "outbound"))
    arguments = {
        "--firewall-bin-path": "iptables-nft",
        "--firewall-save-bin-path": "iptables-nft-save",
        "--incoming-proxy-port": str(INBOUND),
        "--outgoing-proxy-port": str(OUTBOUND),
        "--proxy-uid": str(PROXY_UID),
        "--inbound-ports-to-ignore": f"{CONTROL},{ADMIN},{inbound}",
        "--outbound-ports-to-ignore": outbound,
    }
    return {
        "name": "linkerd-init",
        "image": _IMAGE,
        "command": ["/usr/lib/linkerd/linkerd2-proxy-init"],
        "args": ["--ipv6=false", *(word for pair in arguments.items() for word in pair)],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 65534,
        },
        "volumeMounts": [{"mountPath": "/run", "name": "linkerd-proxy-init-xtables-lock"}],
    }


def _validator() -> Json:
    return {
        "name": "linkerd-network-validator",
        "image": _IMAGE,
        "command": ["/usr/lib/linkerd/linkerd2-network-validator"],
        "args": ["--connect-addr", "1.1.1.1:20001", "--listen-addr", f"0.0.0.0:{OUTBOUND}", "--timeout", "10s"],
        "securityContext": {"readOnlyRootFilesystem": True, "runAsNonRoot": True, "runAsUser": 65534},
    }


def _proxy(spec: Json, config: Json, *, native: bool) -> Json:
    variables = {
        "LINKERD2_PROXY_INBOUND_PORTS": ",".join(map(str, inbound_ports(spec))),
        "LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION": config.get("opaque-ports", _OPAQUE),
        "LINKERD2_PROXY_INBOUND_DEFAULT_POLICY": config.get("default-inbound-policy", "all-unauthenticated"),
    }
    probe = {"httpGet": {"path": "/ready", "port": ADMIN}}
    container: Json = {
        "name": "linkerd-proxy",
        "image": _IMAGE,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "ports": [
            {"containerPort": INBOUND, "name": "linkerd-proxy"},
            {"containerPort": ADMIN, "name": "linkerd-admin"},
        ],
        "livenessProbe": {"httpGet": {"path": "/live", "port": ADMIN}, "initialDelaySeconds": 10},
        "readinessProbe": {**probe, "initialDelaySeconds": 2},
        "securityContext": {"readOnlyRootFilesystem": True, "runAsNonRoot": True, "runAsUser": PROXY_UID},
        "volumeMounts": [
            {"mountPath": "/var/run/linkerd/identity/end-entity", "name": "linkerd-identity-end-entity"},
            {"mountPath": "/var/run/secrets/tokens", "name": "linkerd-identity-token"},
        ],
    }
    if native:
        container |= {"restartPolicy": "Always", "startupProbe": {**probe, "periodSeconds": 1, "failureThreshold": 120}}
    else:
        await_ = ["/usr/lib/linkerd/linkerd-await", "--timeout=2m", f"--port={ADMIN}"]
        container["lifecycle"] = {"postStart": {"exec": {"command": await_}}}
    return container


def inbound_ports(spec: Json) -> list[int]:
    """The TCP ports that are known when the proxy comes: containers' own, and those of plain HTTP probes."""
    found = set()
    for container in spec["containers"]:
        named = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
        found |= {p["containerPort"] for p in container.get("ports", []) if p.get("protocol", "TCP") == "TCP"}
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            port = (container.get(probe) or {}).get("httpGet", {}).get("port")
            if port is not None:
                found.add(named.get(port, port))
    return sorted(found)


def _add(path: str, value: object) -> Json:
    return {"op": "add", "path": path, "value": value}


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _apply(document: Json, operation: Json) -> None:
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    target: Any = document
    for part in way:
        target = target[int(part)] if isinstance(target, list) else target[part]
    value = copy.deepcopy(operation["value"])
    if isinstance(target, list):
        target.insert(len(target) if last == "-" else int(last), value)
    else:
        target[last] = value
