# SPDX-License-Identifier: Apache-2.0
"""Pods for tests: a plain one, the review in which an API server sends it, and pods of anything (hypothesis)."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]

UID = "705ab4f5-6393-11e8-b7cc-42010a800002"


def pod(*, labels: Json | None = None, **spec: Any) -> Json:
    """A Pod of type web, unless labels say otherwise, with one container web, unless `spec` does."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "labels": {"marblerun/marbletype": "web"} if labels is None else labels},
        "spec": {"containers": [{"name": "web", "image": "example.com/web:1"}], **spec},
    }


def review_of(item: object, *, version: str = "v1", **request: Any) -> bytes:
    """The body of an admission request, as an API server writes it."""
    return json.dumps(
        {
            "apiVersion": f"admission.k8s.io/{version}",
            "kind": "AdmissionReview",
            "request": {
                "uid": UID,
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "namespace": "shop",
                "operation": "CREATE",
                "object": item,
                **request,
            },
        }
    ).encode()


def patch_of(response: Json) -> list[Json]:
    """The operations in an answer; none if there is no patch."""
    if "patch" not in response:
        return []
    assert response["patchType"] == "JSONPatch"
    found: list[Json] = json.loads(base64.b64decode(response["patch"], validate=True))
    return found


# Anything, with the names that the injection looks for in likely and in unlikely places.
_NAMES = st.sampled_from(
    [
        *("metadata", "spec", "labels", "annotations", "containers", "name", "env", "volumes", "mountPath", "key"),
        *("ports", "limits", "marblerun/marbletype", "marblemesh/injected", "EDG_MARBLE_TYPE", "web", "a/b~c"),
    ]
)
_LEAVES = st.none() | st.booleans() | st.integers(-1, 70000) | st.floats(0, 1) | _NAMES | st.text(max_size=6)
ANYTHING = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES | st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def _things(key: str, *names: object) -> st.SearchStrategy[Any]:
    """A list of objects, known by one member."""
    return st.lists(st.fixed_dictionaries({key: st.sampled_from(names)}, optional={"value": _LEAVES}), max_size=3)


_QUANTITIES = st.dictionaries(st.sampled_from(["cpu", "sgx.intel.com/epc", "sgx.intel.com/enclave"]), _LEAVES)
_CONTAINER_PARTS = {
    "env": _things("name", "EDG_MARBLE_TYPE", "EDG_MARBLE_UUID_FILE", "MARBLE_NAMESPACE", "A"),
    "volumeMounts": _things("mountPath", "/web-uid", "/run/marblemesh", "/web-uid/", "/x"),
    "ports": _things("containerPort", 80, 15090, "x"),
    "resources": st.fixed_dictionaries({}, optional={"limits": _QUANTITIES, "requests": _QUANTITIES}),
    "command": st.lists(st.text(max_size=3), max_size=2),
    "readinessProbe": ANYTHING,
}
_CONTAINERS = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(["web", "app", "linkerd-proxy", "x-1"])}, optional=_CONTAINER_PARTS),
    min_size=1,
    max_size=3,
    unique_by=lambda container: container["name"],
)
_SPEC = st.fixed_dictionaries(
    {"containers": _CONTAINERS},
    optional={
        "volumes": _things("name", "uuid-file", "marblemesh-run", "marblemesh-run-2"),
        "tolerations": _things("key", "sgx.intel.com/epc", "other"),
        "hostNetwork": st.booleans(),
    },
)
_LABELS = st.fixed_dictionaries(
    {"marblerun/marbletype": st.sampled_from(["web", "Web.1"])},
    optional={"marblerun/resource-injection": st.just("disabled"), "app": st.text(max_size=4)},
)
_ANNOTATIONS = st.dictionaries(
    st.sampled_from(["marblemesh/worker", "prometheus.io/scrape", "x"]), st.sampled_from(["disabled", "true"])
)
_METADATA = st.fixed_dictionaries(
    {"labels": _LABELS}, optional={"annotations": _ANNOTATIONS, "namespace": st.just("shop")}
)
_LIKELY = st.fixed_dictionaries({"metadata": _METADATA, "spec": _SPEC})


@st.composite
def _broken(draw: st.DrawFn) -> Any:
    """A likely pod in which one thing, anywhere, is something else."""
    pod = draw(_LIKELY)
    node: Any = pod
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.integers(0, 3)) == 0:
            node[key] = draw(ANYTHING)
            return pod
        node = node[key]


PODS = st.one_of(_LIKELY, _LIKELY, _broken(), st.dictionaries(_NAMES, ANYTHING, max_size=4))
