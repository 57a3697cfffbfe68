# SPDX-License-Identifier: Apache-2.0
"""Our Kubernetes manifests as `kubectl kustomize` renders them, and what must be true of an object."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.kit.programs import program

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "manifests" / "kubernetes"
RENDERED = KUBERNETES / "rendered"
CRDS = ROOT / "tests" / "data" / "crds"

PLATFORMS = ("simulation", "sgx-intel", "sgx-azure", "sgx-alibaba", "tdx-kata")
# These change no other object.
ADDED = ("injector", "prometheus-operator")

Object = dict[str, Any]


def kustomize(folder: Path) -> list[Object]:
    """The objects of a folder with a kustomization; every call gives objects of its own."""
    return [document for document in yaml.load_all(_rendered(folder), yaml.CSafeLoader) if document]


@cache
def _rendered(folder: Path) -> str:
    command = [program("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(name: str) -> list[Object]:
    """The objects of a folder of rendered/, as they lie there; every call gives objects of its own."""
    return list(yaml.load_all((RENDERED / name / "objects.yaml").read_text(), yaml.CSafeLoader))


def combine(place: Path, member: str, folders: list[Path], components: tuple[str, ...] = ()) -> list[Object]:
    """Folders combined under `resources` or, as kustomize v2 calls it, `bases`; with components where there are any."""
    here = place.resolve()
    chosen: dict[str, object] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        member: [os.path.relpath(folder, here) for folder in folders],
    }
    if components:
        chosen["components"] = [os.path.relpath(KUBERNETES / "components" / name, here) for name in components]
    here.mkdir(exist_ok=True)
    (here / "kustomization.yaml").write_text(yaml.safe_dump(chosen))
    return kustomize(here)


@cache
def has_components() -> bool:
    """Debian 12's kubectl has kustomize v2, which knows no components."""
    command = [program("kubectl"), "kustomize", str(KUBERNETES / "examples" / "emojivoto" / "simulation")]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def components_needed() -> None:
    if not has_components():
        pytest.skip("this kubectl's kustomize is of version 2 and knows no components: rendered/ is for it")


def key(item: Object) -> tuple[str, str, str]:
    return item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]


def by_key(items: list[Object]) -> dict[tuple[str, str, str], Object]:
    """Raises AssertionError if an object is there twice."""
    found = {key(item): item for item in items}
    assert len(found) == len(items)
    return found


@cache
def _validator(schema: Path) -> jsonschema.Draft202012Validator:
    document = json.loads(schema.read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


@cache
def _judged(text: str) -> None:
    item = json.loads(text)
    schema = CRDS / f"{item['kind']}.json"
    if schema.exists():
        _validator(schema).validate(item)
    else:
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


def judge(items: list[Object]) -> None:
    """Raises if one does not fit Kubernetes' newest schema, or that of its custom resource."""
    for item in items:
        _judged(json.dumps(item, sort_keys=True))
