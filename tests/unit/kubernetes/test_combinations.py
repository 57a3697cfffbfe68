# SPDX-License-Identifier: Apache-2.0
"""Every combination of components renders, is valid for Kubernetes, and is the same by every way that leads to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.kit.kustomize import (
    ADDED,
    KUBERNETES,
    PLATFORMS,
    RENDERED,
    ROOT,
    Object,
    by_key,
    combine,
    components_needed,
    judge,
    key,
    kustomize,
    rendered,
)

VARIANTS = tuple(platform + suffix for platform in PLATFORMS for suffix in ("", "-linkerd"))
FOLDERS = tuple(sorted(path.name for path in RENDERED.iterdir()))


@pytest.fixture(scope="module")
def anew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    components_needed()
    target = tmp_path_factory.mktemp("k") / "rendered"
    script = [sys.executable, str(ROOT / "scripts" / "render-kubernetes"), str(target)]
    subprocess.run(script, check=True, timeout=120)
    return target


def read(folder: Path) -> list[Object]:
    return list(yaml.load_all((folder / "objects.yaml").read_text(), yaml.CSafeLoader))


def test_what_is_rendered_beforehand_is_what_base_and_components_give(anew: Path) -> None:
    """Compared as objects: kustomize's versions differ in how they write."""
    assert {path.name for path in anew.iterdir()} == {path.name for path in RENDERED.iterdir()}
    stale = [name for name in FOLDERS if by_key(read(anew / name)) != by_key(rendered(name))]
    assert stale == [], "run scripts/render-kubernetes"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_fits_the_newest_schemas(folder: str) -> None:
    items = kustomize(RENDERED / folder)
    by_key(items)
    judge(items)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_injector_and_monitors_add_objects_and_change_none_so_they_go_with_everything(
    platform: str, tmp_path: Path
) -> None:
    components_needed()
    everything = combine(tmp_path, "resources", [KUBERNETES / "base"], (platform, "linkerd", *ADDED))
    parts = [item for name in (f"{platform}-linkerd", *ADDED) for item in rendered(name)]
    assert by_key(everything) == by_key(parts)


def test_the_kubectl_of_debian_combines_the_rendered_folders_as_bases(tmp_path: Path) -> None:
    """`bases` is understood by kustomize v2 and, with a warning, by v5: this runs with whichever there is."""
    names = ("sgx-intel-linkerd", *ADDED)
    combined = combine(tmp_path, "bases", [RENDERED / name for name in names])
    assert by_key(combined) == by_key([item for name in names for item in rendered(name)])


def test_the_schemas_of_custom_resources_refuse_an_unknown_field() -> None:
    for item in [*rendered("simulation-linkerd"), *rendered("injector")]:
        if item["apiVersion"].split("/")[0] not in ("policy.linkerd.io", "cert-manager.io"):
            continue
        with pytest.raises(jsonschema.ValidationError, match="colour"):
            judge([{**item, "spec": {**item["spec"], "colour": "red"}}])


def test_the_base_alone_has_no_platform_and_so_cannot_start_by_mistake_in_simulation() -> None:
    items = by_key(kustomize(KUBERNETES / "base"))
    container = items["StatefulSet", "marblerun", "marblerun-coordinator"]["spec"]["template"]["spec"]["containers"][0]
    assert not {entry["name"] for entry in container["env"]} & {
        "EDG_COORDINATOR_SIMULATION",
        "EDG_COORDINATOR_INSECURE_NO_ATTESTATION",
        "EDG_COORDINATOR_DEV_MODE",
    }


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("simulation")])
def test_no_real_platform_simulates(variant: str) -> None:
    text = (RENDERED / variant / "objects.yaml").read_text()
    assert "SIMULAT" not in text
    assert "INSECURE" not in text


def test_no_two_platforms_share_an_object_that_differs_only_by_accident() -> None:
    """What a platform has to say is said in the Coordinator, the namespace's label and its own objects."""
    plain = by_key(rendered("simulation"))
    for platform in PLATFORMS[1:]:
        items = by_key(rendered(platform))
        changed = {key(items[name])[0] for name in plain if items[name] != plain[name]}
        assert changed <= {"StatefulSet", "Namespace", "ConfigMap"}
