# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus with our configuration, rules and dashboard beside a real mesh."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest
import yaml

from tests.kit.mesh import ECHO, PATIENCE, MeshHarness, RunningWorker, ask, free_port
from tests.kit.programs import program

pytestmark = pytest.mark.e2e
MANIFESTS = Path(__file__).parents[2] / "manifests"
LEASH = Path(__file__).parents[2] / "enclave_proxy" / "exec_app.py"
# Grafana's variables, as Grafana fills them in.
VARIABLES = {"$__rate_interval": "1m", "$namespace": ".*"}


class Prometheus:
    def __init__(self, address: str) -> None:
        self.address = address

    async def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}"
        async with aiohttp.ClientSession() as client, client.get(url, params=parameters) as reply:
            answer = await reply.json()
            assert answer["status"] == "success", f"{path} {parameters}: {answer}"
            return answer["data"]

    async def until(self, wanted: Callable[[Any], bool], path: str, **parameters: str) -> Any:
        async with asyncio.timeout(PATIENCE):
            while True:  # another process' state has no event to wait for
                try:
                    if wanted(data := await self.get(path, **parameters)):
                        return data
                except aiohttp.ClientError:
                    pass  # it does not listen yet, or answers 503 while it starts
                await asyncio.sleep(0.1)


@asynccontextmanager
async def prometheus(config: dict[str, Any], directory: Path) -> AsyncIterator[Prometheus]:
    binary, address = shutil.which(program("prometheus")) or "", f"127.0.0.1:{free_port()}"
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MANIFESTS / "prometheus/rules.yml")]
    (directory / "prometheus.yml").write_text(json.dumps(config))
    flags = [
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    leash = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), binary]
    process = await asyncio.create_subprocess_exec(*leash, binary, *flags)
    try:
        yield Prometheus(address)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def test_prometheus_scrapes_a_mesh_evaluates_the_rules_and_draws_the_dashboard() -> None:
    program("prometheus")
    with TemporaryDirectory(prefix="mm-") as folder:
        async with MeshHarness(Path(folder)) as mesh:
            metrics, port = free_port(), free_port()
            await mesh.start_coordinator("--prometheus-addr", f"127.0.0.1:{metrics}")
            tls = {
                "web": {"Incoming": [{"Port": str(port), "Peers": ["client"]}]},
                "client": {"Outgoing": [{"Addr": "web", "Port": str(port)}]},
            }
            await mesh.set_manifest(mesh.manifest({"web": {}, "client": {}}, tls))
            web = await mesh.start_worker("web", *ECHO, "web", f"{port}.sock")
            client = await mesh.start_worker("client", "sleep", "600")
            for worker in (web, client):
                await worker.ready()
            await web.admin_says("/metrics", lambda text: "marblemesh_worker_ready 1.0" in text)
            await ask(client.run_dir / f"web-{port}.sock", b"x", b"web:x")
            config = await _configuration(metrics, web, client)
            async with prometheus(config, Path(folder)) as server:
                await _all_is_seen(server)


async def _configuration(coordinator: int, *workers: RunningWorker) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((MANIFESTS / "prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    jobs["marblemesh-coordinator"]["static_configs"][0]["targets"] = [f"127.0.0.1:{coordinator}"]
    addresses = [(await worker.logged("admin listening"))["address"] for worker in workers]
    jobs["marblemesh-worker"]["static_configs"] = [
        {"targets": [address], "labels": {"marble_type": worker.name}}
        for address, worker in zip(addresses, workers, strict=True)
    ]
    return config


async def _all_is_seen(server: Prometheus) -> None:
    def all_up(data: Any) -> bool:
        return [target["health"] for target in data["activeTargets"]] == ["up"] * 3

    await server.until(all_up, "targets")
    await server.until(
        lambda data: len(data["result"]) == 2, "query", query="marblemesh:worker_identity_life_left:ratio > 0.9"
    )
    groups = (await server.until(_evaluated, "rules"))["groups"]
    wrong = [
        (rule["name"], rule.get("lastError")) for group in groups for rule in group["rules"] if rule["health"] != "ok"
    ]
    assert wrong == []
    firing = (await server.until(lambda data: data["result"], "query", query='ALERTS{alertstate="firing"}'))["result"]
    assert {alert["metric"]["alertname"] for alert in firing} == {"MarblemeshSimulation"}
    await _every_panel_can_be_drawn(server)


def _evaluated(data: Any) -> bool:
    return all(rule["health"] != "unknown" for group in data["groups"] for rule in group["rules"])


async def _every_panel_can_be_drawn(server: Prometheus) -> None:
    dashboard = json.loads((MANIFESTS / "grafana/marblemesh.json").read_text())
    drawn = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            drawn[panel["title"]] = bool((await server.get("query", query=expression))["result"])
    # What has not happened (a refusal, a rejected push) has no series; these have, from the first minute on.
    for title in ("Coordinator", "Simulation", "Workers not ready", "Connections", "Life left of identities"):
        assert drawn[title], f"{title} is empty"


LINKERD = "__meta_kubernetes_pod_label_linkerd_io_proxy_"
POD = {"__meta_kubernetes_namespace": "shop", "__meta_kubernetes_pod_name": "web-7f"}
MARBLE = {
    **POD,
    "__meta_kubernetes_pod_label_marblerun_marbletype": "web",
    "__meta_kubernetes_pod_container_port_name": "mesh-admin",
}


# Name, job, what Kubernetes would say of a port, labels that come of it (None: it is not scraped).
FOUND: list[tuple[str, str, dict[str, str], dict[str, str] | None]] = [
    ("a Marble", "marblemesh-worker", MARBLE, {"namespace": "shop", "pod": "web-7f", "marble_type": "web"}),
    (
        "a Marble that Linkerd injected",
        "marblemesh-worker",
        {**MARBLE, f"{LINKERD}deployment": "web", f"{LINKERD}job": "migrate"},
        {"namespace": "shop", "pod": "web-7f", "marble_type": "web", "deployment": "web", "k8s_job": "migrate"},
    ),
    (
        "its proxy",
        "marblemesh-worker",
        {**MARBLE, "__meta_kubernetes_pod_container_port_name": "linkerd-admin"},
        None,
    ),
    ("another pod", "marblemesh-worker", POD, None),
    (
        "the Coordinator",
        "marblemesh-coordinator",
        {
            **POD,
            "__meta_kubernetes_pod_label_app_kubernetes_io_part_of": "marblemesh",
            "__meta_kubernetes_pod_container_port_name": "metrics",
        },
        {"namespace": "shop", "pod": "web-7f"},
    ),
]


async def test_on_kubernetes_pods_get_the_labels_that_linkerd_s_metrics_have(tmp_path: Path) -> None:
    """Debian's Prometheus is built without Kubernetes discovery: what it would find comes from files here."""
    config = yaml.safe_load((MANIFESTS / "prometheus/kubernetes.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    config["scrape_configs"] = []
    for name, job, labels, _ in FOUND:
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps([{"targets": ["127.0.0.1:1"], "labels": labels}]))
        entry = {**jobs[job], "job_name": name, "file_sd_configs": [{"files": [str(file)]}]}
        assert entry.pop("kubernetes_sd_configs") == [{"role": "pod"}]
        config["scrape_configs"].append(entry)
    async with prometheus(config, tmp_path) as server:
        data = await server.until(
            lambda data: len(data["activeTargets"]) + len(data["droppedTargets"]) == len(FOUND), "targets"
        )
    kept = {target["labels"]["job"]: target["labels"] for target in data["activeTargets"]}
    wanted = {name: {"instance": "127.0.0.1:1", "job": name, **labels} for name, _, _, labels in FOUND if labels}
    assert kept == wanted
