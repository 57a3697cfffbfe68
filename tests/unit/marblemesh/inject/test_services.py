# SPDX-License-Identifier: Apache-2.0
"""Services in front of Marbles: which of their ports lead to where a worker terminates mTLS."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from manifests.parse import parse
from marblemesh.inject.errors import Refused
from marblemesh.inject.linkerd_ports import LinkerdMode
from marblemesh.inject.report import Level
from marblemesh.inject.settings import Settings
from marblemesh.inject.stream import Result, inject_stream, uninject_stream
from tests.kit.manifests import manifest
from tests.kit.pods import pod

MARBLES = manifest(
    Packages={"p": next(iter(manifest()["Packages"].values()))},
    Marbles={"web": {"Package": "p", "TLS": ["t"]}},
    TLS={"t": {"Incoming": [{"Port": "8443"}]}},
)
SETTINGS = Settings(manifest=parse(json.dumps(MARBLES).encode()), linkerd=LinkerdMode.OPAQUE)
POD = pod(
    labels={"marblerun/marbletype": "web", "app": "web"},
    containers=[{"name": "web", "image": "a", "ports": [{"name": "mesh", "containerPort": 8443}]}],
)


def service(*ports: Any, selector: Any = None, **metadata: Any) -> Any:
    spec = {"selector": {"app": "web"} if selector is None else selector, "ports": list(ports)}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", **metadata}, "spec": spec}


def injected(*documents: Any) -> Result:
    text = yaml.safe_dump_all(documents, sort_keys=False)
    found = inject_stream(text, SETTINGS)
    assert uninject_stream(found.text).text == text
    return found


def first(result: Result) -> Any:
    return next(yaml.safe_load_all(result.text))


@pytest.mark.parametrize(
    ("port", "is_mesh"),
    [
        ({"port": 443, "targetPort": 8443}, True),
        ({"port": 443, "targetPort": "mesh"}, True),
        ({"port": 8443}, True),
        ({"port": 443}, False),
        ({"port": 8443, "targetPort": 8080}, False),
        ({"port": 443, "targetPort": "mesh-admin"}, False),
    ],
)
def test_a_port_is_judged_by_where_it_leads_whatever_stands_first_in_the_input(port: Any, is_mesh: bool) -> None:
    for documents in ((service(port), POD), (POD, service(port))):
        found = next(item for item in yaml.safe_load_all(injected(*documents).text) if item["kind"] == "Service")
        assert (found["spec"]["ports"][0].get("appProtocol") == "tcp") == is_mesh
        opaque = found["metadata"].get("annotations", {}).get("config.linkerd.io/opaque-ports")
        assert opaque == (str(port["port"]) if is_mesh else None)


@pytest.mark.parametrize(
    "other",
    [
        service({"port": 8443}, selector={"app": "other"}),
        service({"port": 8443}, selector={"app": "web", "tier": "x"}),
        service({"port": 8443}, selector={}),
        service({"port": 8443}, namespace="elsewhere"),
    ],
)
def test_a_service_in_front_of_something_else_is_left_alone(other: Any) -> None:
    result = injected(other, POD)
    assert first(result) == other
    assert [note.text for note in result.reports[0].notes] == ["it selects no Marble of this input"]


def test_what_is_marked_as_http_stays_so_with_a_warning() -> None:
    result = injected(service({"port": 8443, "appProtocol": "http"}), POD)
    (warning,) = [note for note in result.reports[0].notes if note.level is Level.WARNING]
    assert warning.text == "port 8443 has appProtocol http, and carries mTLS"


@pytest.mark.parametrize("ports", [7, {"a": 1}, ["x"]])
def test_a_pod_whose_ports_are_none_is_refused_by_name(ports: Any) -> None:
    item = pod(containers=[{"name": "web", "image": "a", "ports": ports}])
    for settings in (SETTINGS, Settings(worker=False)):
        with pytest.raises(Refused, match=r"pod/web .*: spec\.containers\.web\.ports(\[0\])? is not"):
            inject_stream(yaml.safe_dump(item), settings)


@pytest.mark.parametrize(
    ("present", "lacks"), [("80", "8443"), ("80,8443", None), ("8000-9000", None), ("mysql, 8443", None)]
)
def test_an_annotation_of_the_user_s_is_held_against_the_ports(present: str, lacks: str | None) -> None:
    result = injected(service({"port": 8443}, annotations={"config.linkerd.io/opaque-ports": present}), POD)
    assert first(result)["metadata"]["annotations"]["config.linkerd.io/opaque-ports"] == present
    warnings = [note.text for note in result.reports[0].notes if note.level is Level.WARNING]
    expected = [] if lacks is None else [f"annotation config.linkerd.io/opaque-ports is there, and lacks {lacks}"]
    assert warnings == expected
