# SPDX-License-Identifier: Apache-2.0
"""The rendered Coordinator and the emojivoto example run: pods as processes, each with a network and a root of its own.

Addresses, volumes, arguments and variables are those of the objects; probes are asked as a kubelet asks them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sds.attestation.simulated import SimulatedPlatform
from tests.kit.kustomize import KUBERNETES, Object, rendered
from tests.kit.netns import Namespace, link, namespaces_needed, pods
from tests.kit.pod_process import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
MARBLES = ("emoji", "voting", "web", "vote-bot")
HUB = "10.88.{}.1"
POD = "10.88.{}.2"


@contextmanager
def network(*names: str) -> Iterator[tuple[Namespace, dict[str, Namespace]]]:
    """A router and a namespace for each pod: 10.88.N.2."""
    with pods("hub", *names) as (hub, *found):
        hub.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for number, pod in enumerate(found):
            link(hub, pod, [f"{HUB.format(number)}/24"], [f"{POD.format(number)}/24"])
            pod.run("ip", "route", "add", "default", "via", HUB.format(number))
        yield hub, dict(zip(names, found, strict=True))


def templates(folder: str) -> dict[str, Object]:
    items = rendered(folder)
    return {i["metadata"]["name"]: i["spec"]["template"] for i in items if i["kind"] in ("Deployment", "StatefulSet")}


def probe(hub: Namespace, template: Object, name: str, address: str) -> bool:
    """As a kubelet: GET, from outside the pod, without looking at the certificate."""
    (container,) = template["spec"]["containers"]
    check = container[name]["httpGet"]
    (port,) = [entry["containerPort"] for entry in container["ports"] if entry["name"] == check["port"]]
    url = f"{check.get('scheme', 'HTTP').lower()}://{address}:{port}{check['path']}"
    command = hub.argv("curl", "-skf", "--max-time", "5", "-o", "/dev/null", url)
    return subprocess.run(command, timeout=20, check=False).returncode == 0


def until(what: str, check: object, logs: Path) -> None:
    end = time.monotonic() + 90
    while not check():  # type: ignore[operator]
        texts = "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in sorted(logs.glob("*.log")))
        assert time.monotonic() < end, f"{what} did not come\n{texts}"
        time.sleep(0.3)


def test_the_example_s_pods_vote_over_attested_mtls(tmp_path: Path) -> None:
    namespaces_needed("curl")
    SimulatedPlatform.open(tmp_path / "platform", datetime.now(UTC))
    coordinator = templates("simulation")["marblerun-coordinator"]
    marbles = templates("emojivoto-simulation")
    with network("coordinator", *MARBLES) as (hub, found):
        place = {name: POD.format(number) for number, name in enumerate(found)}
        hosts = {f"coordinator-{api}-api.marblerun": place["coordinator"] for api in ("mesh", "client")}
        secrets = {"simulated-platform": tmp_path / "platform" / "identity"}
        cluster = Cluster(tmp_path, hosts, secrets)
        cluster.start("coordinator", coordinator, found["coordinator"], place["coordinator"])
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            until(name, lambda n=name: probe(hub, coordinator, n, place["coordinator"]), tmp_path)
        verb = (sys.executable, "-m", "marblemesh", "manifest", "set", f"{KUBERNETES}/examples/emojivoto/manifest.json")
        where = (f"{place['coordinator']}:4433", "--simulation", "--simulated-platform", f"{tmp_path}/platform")
        hub.run("env", f"HOME={tmp_path}", *verb, *where)
        for name in MARBLES:
            cluster.start(name, marbles[name], found[name], place[name])
        for name in MARBLES:
            until(f"{name} ready", lambda n=name: probe(hub, marbles[n], "readinessProbe", place[n]), tmp_path)
            assert probe(hub, marbles[name], "livenessProbe", place[name])

        def votes() -> bool:
            metrics = hub.run("curl", "-sf", f"http://{place['voting']}:15090/metrics")
            assert 'peer="vote-bot"' not in metrics
            return 'peer="web"' in metrics and any(
                float(n) > 1000
                for n in re.findall(r"^marblemesh_worker_bytes_total\{.*\} (\S+)$", metrics, re.MULTILINE)
            )

        until("votes", votes, tmp_path)
