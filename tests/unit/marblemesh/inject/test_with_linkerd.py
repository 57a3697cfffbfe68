# SPDX-License-Identifier: Apache-2.0
"""Our injection and Linkerd's in one pod: whichever is first, with native sidecars or legacy ones, with CNI or not."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import pytest
import yaml

from manifests.parse import parse
from marblemesh.inject.linkerd_ports import OPAQUE_PORTS, LinkerdMode
from marblemesh.inject.names import RECORD
from marblemesh.inject.settings import Settings
from marblemesh.inject.stream import inject_stream, uninject_stream
from tests.kit import linkerd_inject as linkerd
from tests.kit.kustomize import judge
from tests.kit.linkerd_inject import LAYOUTS, Json, Layout
from tests.kit.linkerd_rules import ADMIN, CONTROL, INBOUND, OUTBOUND, PROXY_UID
from tests.kit.manifests import manifest

PORT, ADMIN_PORT = 9443, 15090
SETTINGS = Settings(
    linkerd=LinkerdMode.OPAQUE,
    wrap=True,
    sgx=None,
    manifest=parse(
        json.dumps(
            manifest(
                Marbles={"web": {"Package": "app", "TLS": ["web"]}},
                Packages={"app": next(iter(manifest()["Packages"].values()))},
                TLS={"web": {"Incoming": [{"Port": str(PORT)}]}},
            )
        ).encode()
    ),
)
KINDS = ("Deployment", "StatefulSet", "CronJob", "Pod")
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=str)
both = pytest.mark.parametrize("first", ["ours", "linkerd's"])


def workload(kind: str) -> Json:
    """A Marble with an init container of its own, wanted by Linkerd."""
    template: Json = {
        "metadata": {
            "labels": {"app": "web", "marblerun/marbletype": "web"},
            "annotations": {"linkerd.io/inject": "enabled"},
        },
        "spec": {
            "initContainers": [{"name": "migrate", "image": "web:1", "command": ["migrate"]}],
            "containers": [
                {
                    "name": "web",
                    "image": "web:1",
                    "command": ["web", "--port", "8080"],
                    "ports": [{"name": "mesh", "containerPort": PORT}],
                }
            ],
        },
    }
    metadata = {"name": "web"}
    if kind == "Pod":
        return {
            "apiVersion": "v1",
            "kind": kind,
            "metadata": {**template["metadata"], **metadata},
            "spec": template["spec"],
        }
    if kind == "CronJob":
        template["spec"]["restartPolicy"] = "Never"
        job = {"spec": {"template": template}}
        return {
            "apiVersion": "batch/v1",
            "kind": kind,
            "metadata": metadata,
            "spec": {"schedule": "0 3 * * *", "jobTemplate": job},
        }
    spec: Json = {"selector": {"matchLabels": {"app": "web"}}, "template": template}
    if kind == "StatefulSet":
        spec["serviceName"] = "web"
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec}


def ours(document: Json) -> Json:
    text = inject_stream(yaml.safe_dump(document, sort_keys=False), SETTINGS).text
    done: Json = yaml.safe_load(text)
    return done


def theirs(document: Json, layout: Layout) -> Json:
    return linkerd.inject(document, layout)


def injected(kind: str, layout: Layout, first: str) -> Json:
    document = workload(kind)
    return theirs(ours(document), layout) if first == "ours" else ours(theirs(document, layout))


def template_of(document: Json) -> Json:
    way = {"Pod": (), "CronJob": ("spec", "jobTemplate", "spec", "template")}.get(
        document["kind"], ("spec", "template")
    )
    for name in way:
        document = document[name]
    return document


def meaning(document: Json) -> Json:
    """Without what Kubernetes does not care about: the order of volumes, and our record of who made their list."""
    done = copy.deepcopy(document)
    template = template_of(done)
    template["spec"]["volumes"].sort(key=lambda volume: volume["name"])
    del template["metadata"]["annotations"][RECORD]
    return done


def everything(template: Json) -> list[Json]:
    spec = template["spec"]
    return [*spec["initContainers"], *spec["containers"]]


def proxy(template: Json) -> dict[str, Any]:
    """The variables of Linkerd's proxy."""
    container = next(item for item in everything(template) if item["name"] == "linkerd-proxy")
    return {variable["name"]: variable["value"] for variable in container["env"]}


@layouts
@both
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_there_twice_and_the_pod_is_valid(kind: str, layout: Layout, first: str) -> None:
    document = injected(kind, layout, first)
    judge([document])
    template = template_of(document)
    containers = everything(template)
    numbers = [port["containerPort"] for item in containers for port in item.get("ports", [])]
    port_names = [port["name"] for item in containers for port in item.get("ports", [])]
    for things in (
        [item["name"] for item in containers],
        [volume["name"] for volume in template["spec"]["volumes"]],
        numbers,
        port_names,
        *([mount["mountPath"] for mount in item.get("volumeMounts", [])] for item in containers),
    ):
        assert [thing for thing, count in Counter(things).items() if count > 1] == []
    assert set(numbers) == {PORT, ADMIN_PORT, INBOUND, ADMIN}
    assert {CONTROL, OUTBOUND}.isdisjoint(numbers)


@layouts
@both
def test_only_linkerds_proxy_runs_as_linkerds_user_and_is_scraped_as_such(layout: Layout, first: str) -> None:
    """Whoever else has its user or group is past the redirection; whoever has its names is taken for it."""
    template = template_of(injected("Deployment", layout, first))
    for item in everything(template):
        context = item.get("securityContext", {})
        theirs_ = item["name"].startswith("linkerd-")
        assert (context.get("runAsUser") == PROXY_UID) == (item["name"] == "linkerd-proxy")
        assert context.get("runAsGroup") != PROXY_UID
        assert theirs_ == item["image"].startswith("cr.l5d.io/")
        assert theirs_ or not any(port["name"].startswith("linkerd-") for port in item.get("ports", []))
    assert template["spec"].get("securityContext", {}).get("runAsUser") != PROXY_UID


@layouts
@both
def test_linkerds_containers_stand_where_it_puts_them_and_the_marble_is_the_app(layout: Layout, first: str) -> None:
    """Native: the redirection and the proxy come before every other init container, so these go through it. Legacy: the
    redirection comes last, and they go past it."""
    template = template_of(injected("Deployment", layout, first))
    spec = template["spec"]
    redirect = "linkerd-network-validator" if layout.cni else "linkerd-init"
    init, running = ([item["name"] for item in spec[name]] for name in ("initContainers", "containers"))
    if layout.native:
        assert (init, running) == ([redirect, "linkerd-proxy", "migrate"], ["web"])
    else:
        assert (init, running) == (["migrate", redirect], ["linkerd-proxy", "web"])
    marbles = [
        item["name"]
        for item in everything(template)
        if any(variable["name"] == "EDG_MARBLE_TYPE" for variable in item.get("env", []))
    ]
    assert marbles == ["web"]
    assert next(item for item in spec["containers"] if item["name"] == "web")["command"][:3] == [
        "marblemesh",
        "proxy",
        "run",
    ]


@layouts
def test_before_linkerd_its_proxy_knows_the_workers_ports_from_the_start(layout: Layout) -> None:
    known = proxy(template_of(injected("Deployment", layout, "ours")))
    assert known["LINKERD2_PROXY_INBOUND_PORTS"] == f"{PORT},{ADMIN_PORT}"
    assert known["LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION"] == str(PORT)


@layouts
def test_after_linkerd_its_proxy_learns_the_marks_from_the_pods_annotations_only(layout: Layout) -> None:
    """Linkerd's webhook is not called again: what comes after it is missing from the proxy's environment, though its
    policy API reads the annotation all the same. Hence our webhook's name is sorted before Linkerd's."""
    template = template_of(injected("Deployment", layout, "linkerd's"))
    known = proxy(template)
    assert known["LINKERD2_PROXY_INBOUND_PORTS"] == str(PORT)
    assert str(PORT) not in known["LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION"].split(",")
    assert template["metadata"]["annotations"][OPAQUE_PORTS] == str(PORT)


@layouts
@both
def test_injecting_again_in_any_order_changes_nothing(layout: Layout, first: str) -> None:
    once = injected("Deployment", layout, first)
    assert theirs(once, layout) == once
    again = ours(once)
    assert meaning(again) == meaning(once)
    assert ours(again) == again
    assert theirs(ours(again), layout) == again


@layouts
@both
def test_what_we_put_in_comes_out_again_and_linkerds_stays(layout: Layout, first: str) -> None:
    original = workload("Deployment")
    document = injected("Deployment", layout, first)
    taken_out: Json = yaml.safe_load(uninject_stream(yaml.safe_dump(document, sort_keys=False)).text)
    left, alone = (copy.deepcopy(template_of(item)) for item in (taken_out, theirs(original, layout)))
    for template in (left, alone):  # the proxy knows what it knew when it came
        next(item for item in everything(template) if item["name"] == "linkerd-proxy").pop("env")
    assert left == alone


@pytest.mark.parametrize(
    "change",
    [
        {"hostNetwork": True},
        {"containers": [{"name": "istio-proxy", "image": "x"}]},
        {"initContainers": [{"name": "x", "image": "cr.l5d.io/linkerd/proxy-init:v2"}]},
    ],
)
def test_the_emulator_leaves_alone_what_linkerd_leaves_alone(change: Json) -> None:
    document = workload("Deployment")
    document["spec"]["template"]["spec"] |= change
    assert theirs(document, Layout()) == document


def test_a_pod_that_skips_ports_tells_the_init_container() -> None:
    document = workload("Deployment")
    annotations = document["spec"]["template"]["metadata"]["annotations"]
    annotations["config.linkerd.io/skip-inbound-ports"] = "4567,4568,9443"
    arguments = theirs(document, Layout())["spec"]["template"]["spec"]["initContainers"][0]["args"]
    listed = arguments[arguments.index("--inbound-ports-to-ignore") + 1]
    assert listed == "4190,4191,4567,4568,9443"
