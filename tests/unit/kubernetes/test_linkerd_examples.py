# SPDX-License-Identifier: Apache-2.0
"""The examples of linkerd-integration/: valid objects whose parts fit together and agree with what is computed."""

from __future__ import annotations

import pytest
import yaml

from manifests.parse import parse
from marblemesh.inject.linkerd_ports import (
    OPAQUE_PORTS,
    SKIP_INBOUND_PORTS,
    LinkerdMode,
    mesh_ports,
    pod_annotations,
    service_annotations,
)
from marblemesh.inject.report import Level
from marblemesh.inject.settings import Settings
from marblemesh.inject.stream import inject_stream
from tests.kit import linkerd_inject
from tests.kit.kustomize import ROOT, Object, by_key, judge
from tests.kit.linkerd_inject import Layout

EXAMPLES = ROOT / "linkerd-integration" / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))
MANIFEST = parse((EXAMPLES / "manifest.json").read_bytes())
ADMIN = 15090
examples = pytest.mark.parametrize("name", NAMES)
with_pods = pytest.mark.parametrize("name", [name for name in NAMES if name != "policy"])


def objects(name: str) -> list[Object]:
    return [item for item in yaml.load_all((EXAMPLES / f"{name}.yaml").read_text(), yaml.CSafeLoader) if item]


def of_kind(name: str, kind: str) -> dict[str, Object]:
    return {item["metadata"]["name"]: item for item in objects(name) if item["kind"] == kind}


def ports(text: str) -> set[int]:
    return {int(port) for port in text.split(",")}


@examples
def test_an_example_is_valid_for_kubernetes_and_for_linkerds_resources(name: str) -> None:
    items = objects(name)
    by_key(items)
    judge(items)


@with_pods
def test_the_marks_are_what_marblemesh_linkerd_annotations_prints(name: str) -> None:
    """Beside them only the worker's admin port is named, which no manifest knows."""
    mode = LinkerdMode.SKIP if name == "skip" else LinkerdMode.OPAQUE
    for marble_type, item in of_kind(name, "Deployment").items():
        template = item["spec"]["template"]
        have = {key: text for key, text in template["metadata"]["annotations"].items() if key.endswith("-ports")}
        past = ports(have.pop(SKIP_INBOUND_PORTS))
        wanted = pod_annotations(mesh_ports(MANIFEST, marble_type), mode)
        assert past == {4567, 4568, ADMIN} | ports(wanted.pop(SKIP_INBOUND_PORTS, "4567,4568"))
        assert have == wanted
    for item in of_kind(name, "Service").values():
        wanted = service_annotations([port["port"] for port in item["spec"]["ports"]], mode)
        assert item["metadata"].get("annotations", {}) == wanted


@with_pods
def test_our_injection_finds_nothing_amiss_in_the_marks(name: str) -> None:
    mode = LinkerdMode.SKIP if name == "skip" else LinkerdMode.OPAQUE
    text = (EXAMPLES / f"{name}.yaml").read_text()
    result = inject_stream(text, Settings(sgx=None, linkerd=mode, manifest=MANIFEST))
    notes = [note for report in result.reports for note in report.notes]
    assert [note for note in notes if note.level is Level.WARNING and "linkerd" in note.text.lower()] == []
    judge([item for item in yaml.load_all(result.text, yaml.CSafeLoader) if item])


@with_pods
def test_linkerd_injects_every_pod_of_an_example(name: str) -> None:
    layout = Layout(native=name != "legacy", cni=name == "cni")
    for item in of_kind(name, "Deployment").values():
        done = linkerd_inject.inject(item, layout)
        spec = done["spec"]["template"]["spec"]
        assert "linkerd-proxy" in [one["name"] for one in (*spec["initContainers"], *spec["containers"])]
        judge([done])


def test_the_policies_name_only_what_is_there() -> None:
    policies = {kind: of_kind("policy", kind) for kind in ("Server", "MeshTLSAuthentication", "NetworkAuthentication")}
    pods = [item["spec"]["template"] for item in of_kind("opaque", "Deployment").values()]
    for server in policies["Server"].values():
        chosen = [pod for pod in pods if _selects(server["spec"]["podSelector"], pod["metadata"]["labels"])]
        assert chosen
        for pod in chosen:
            named = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
            assert server["spec"]["port"] in named
    allowed = set()
    for rule in of_kind("policy", "AuthorizationPolicy").values():
        target = rule["spec"]["targetRef"]
        assert target["name"] in policies[target["kind"]]
        allowed.add(target["name"])
        for reference in rule["spec"]["requiredAuthenticationRefs"]:
            assert reference["name"] in policies[reference["kind"]]
    assert allowed == set(policies["Server"])  # a Server that nobody may pass would close its port
    accounts = of_kind("opaque", "ServiceAccount")
    for item in policies["MeshTLSAuthentication"].values():
        assert {reference["name"] for reference in item["spec"].get("identityRefs", [])} <= set(accounts)


def test_a_mesh_port_is_opaque_to_linkerds_policies() -> None:
    """Any HTTP protocol there would break the mesh's TLS."""
    servers = of_kind("policy", "Server")
    assert servers["db-mesh"]["spec"]["proxyProtocol"] == "opaque"
    assert OPAQUE_PORTS in of_kind("opaque", "Service")["db"]["metadata"]["annotations"]


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    exact = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return exact and all(
        labels.get(term["key"]) in term["values"] and term["operator"] == "In"
        for term in selector.get("matchExpressions", [])
    )
