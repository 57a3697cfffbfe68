# SPDX-License-Identifier: Apache-2.0
"""What is injected starts a worker: a kubelet's part is played here, Coordinator and worker are real."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from marblemesh.inject.pod import inject_pod
from marblemesh.inject.settings import AdminAddress, Advertise, Settings
from marblemesh.inject.wrap import WRAPPER
from tests.kit.mesh import MeshHarness, free_port
from tests.kit.pods import Json, pod

pytestmark = pytest.mark.e2e

POD_UID = "1f6b3c1e-9a51-4b9f-8e0e-42010a800002"
FIELDS = {"metadata.namespace": "shop", "metadata.uid": POD_UID, "status.podIP": "127.0.0.1"}


@pytest.fixture
async def mesh() -> AsyncIterator[MeshHarness]:
    with TemporaryDirectory(prefix="mm-") as directory:
        async with MeshHarness(Path(directory)) as harness:
            yield harness


class Kubelet:
    """Volumes and variables of a pod's one container, as far as an injected pod needs them, below a directory."""

    def __init__(self, item: Json, root: Path, ready_made: Mapping[str, Path]) -> None:
        self._item = item
        self._root = root
        (self.container,) = item["spec"]["containers"]
        volumes = {volume["name"]: volume for volume in item["spec"]["volumes"]}
        self._mounts = {
            mount["mountPath"]: ready_made.get(mount["mountPath"]) or self._mount(volumes[mount["name"]])
            for mount in self.container["volumeMounts"]
        }

    def _mount(self, volume: Json) -> Path:
        folder = self._root / str(volume["name"])
        folder.mkdir()
        for entry in volume.get("downwardAPI", {}).get("items", ()):
            (folder / entry["path"]).write_text(FIELDS[entry["fieldRef"]["fieldPath"]])
        folder.chmod(0o555 if "downwardAPI" in volume else 0o777)
        return folder

    def environment(self) -> dict[str, str]:
        """Variables with `$(NAME)` of those before them, and paths as they are here."""
        known: dict[str, str] = {}
        for variable in self.container["env"]:
            value = variable.get("value") or FIELDS[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            known[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: known[match[1]], value)
        return {name: self._here(value) for name, value in known.items()}

    def _here(self, value: str) -> str:
        for path, folder in self._mounts.items():
            if value == path or value.startswith(f"{path}/"):
                return f"{folder}{value[len(path) :]}"
        assert not value.startswith("/"), f"nothing is mounted at {value}"
        return value


def injected(mesh: MeshHarness, admin: int) -> Json:
    settings = Settings(
        coordinator=mesh.mesh_addr,
        sgx=None,
        simulation=True,
        wrap=True,
        admin=AdminAddress("127.0.0.1", admin),
        advertise=Advertise.POD_IP,
    )
    item = pod(containers=[{"name": "web", "image": "web", "command": ["sleep"], "args": ["60"]}])
    return inject_pod(item, settings, uuid_volume="uuid-file").template


async def test_an_injected_pod_s_worker_is_attested_under_the_pod_s_uid_and_its_probes_answer(
    mesh: MeshHarness,
) -> None:
    await mesh.start_coordinator()
    await mesh.set_manifest(mesh.manifest({"web": {}}, {}))
    item = injected(mesh, free_port())
    kubelet = Kubelet(item, mesh.directory, {"/simulated-platform": mesh.platform})
    container: dict[str, Any] = kubelet.container
    environment = kubelet.environment()
    assert container["command"][: len(WRAPPER)] == list(WRAPPER)
    app = (*container["command"][len(WRAPPER) :], *container["args"])

    worker = await mesh.start_worker("web", *app, env=environment)
    await worker.ready()

    for probe in ("readinessProbe", "livenessProbe"):
        check = container[probe]["httpGet"]
        assert (await worker.admin(check["path"]))[0] == 200
        assert environment["EDG_MARBLE_ADMIN_ADDR"] == f"127.0.0.1:{check['port']}"
    assert f"CN={POD_UID}" in (await worker.admin("/certs"))[1]
    # The worker starts only if the address under which it is found is among its names.
    assert environment["EDG_MARBLE_DNS_NAMES"] == "web,web.shop,web.shop.svc.cluster.local,127.0.0.1"
    assert (mesh.directory / "marblemesh-run" / "web" / "workload.sock").is_socket()
