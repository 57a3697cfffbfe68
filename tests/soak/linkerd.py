# SPDX-License-Identifier: Apache-2.0
"""Silence through Linkerd for real times: with its default detection of 10 s, connections say nothing for 30 s.

    python -m tests.soak.linkerd                       needs root, iptables and network namespaces
    python -m tests.soak.linkerd --seconds 300

On an opaque port and on a detected one: through two workers (which speak TLS at once), between two meshed pods without
workers, and from a client without Linkerd. Ends with status 1 unless exactly the last, on the detected port, is cut.
With LINKERD2_PROXY_BIN the proxies are the real ones.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from marblemesh.inject.linkerd_ports import COORDINATOR_PORTS
from sds import logs
from tests.kit.linkerd_control import Workload
from tests.kit.linkerd_mesh import PORT, pod_mesh
from tests.kit.linkerd_peers import Connection, connected, echo
from tests.kit.linkerd_pod import Town, meshed

PLAIN_OPAQUE, PLAIN_DETECTED = 9000, 9001
CUT_OFF = "a client without Linkerd, detected port"


async def silent(name: str, connection: Connection, seconds: float) -> tuple[str, bool]:
    """Say nothing for so long, then ask: whether there is an answer."""
    await asyncio.sleep(seconds)
    alive = await connection.ask(b"after all this time") != b""
    print(f"{name}: {'answered' if alive else 'cut off'} after {seconds:.0f} s of silence", flush=True)
    return name, alive


async def between_apps(town: Town, seconds: float) -> dict[str, bool]:
    """Without workers, from the other pod and from outside."""
    async with echo(town.b, PLAIN_OPAQUE), echo(town.b, PLAIN_DETECTED):
        runs = []
        for who, where, address in (
            ("another meshed pod", town.a.namespace, town.b.workload.address),
            ("a client without Linkerd", town.outside, "10.77.1.2"),
        ):
            for kind, port in (("opaque", PLAIN_OPAQUE), ("detected", PLAIN_DETECTED)):
                runs.append((f"{who}, {kind} port", where, address, port))

        async def run(name: str, *target: object) -> tuple[str, bool]:
            async with connected(*target) as connection:  # type: ignore[arg-type]
                return await silent(name, connection, seconds)

        return dict(await asyncio.gather(*(run(*one) for one in runs)))


async def between_workers(town: Town, kind: str, seconds: float) -> dict[str, bool]:
    """From app to app through two workers; silent before the first byte and after it."""
    with TemporaryDirectory(prefix="mm-") as directory:
        async with pod_mesh(Path(directory), town) as mesh:
            reader, writer = await asyncio.open_unix_connection(str(mesh.socket))
            alive = True
            for moment in ("before the first byte", "after it"):
                await asyncio.sleep(seconds)
                writer.write(b"x")
                try:
                    async with asyncio.timeout(10):
                        alive = alive and await reader.readexactly(4) == b"db:x"
                except (OSError, asyncio.IncompleteReadError):
                    alive = False
                print(f"two workers, {kind} port, {moment}: {'answered' if alive else 'cut off'}", flush=True)
            writer.close()
            return {f"two workers, {kind} port": alive}


async def soak(seconds: float) -> dict[str, bool]:
    """Whether each kind of connection was alive in the end."""
    found: dict[str, bool] = {}
    for kind, opaque in (("opaque", {PLAIN_OPAQUE, PORT, *COORDINATOR_PORTS}), ("detected", {PLAIN_OPAQUE})):
        pods = Workload("a", "10.77.0.1"), Workload("b", "10.77.0.2", opaque=set(opaque), detect_seconds=10)
        async with meshed(*pods) as town, asyncio.TaskGroup() as group:
            runs = [group.create_task(between_workers(town, kind, seconds))]
            if kind == "opaque":
                runs.append(group.create_task(between_apps(town, seconds)))
        for run in runs:
            found |= run.result()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.linkerd", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="how long nothing is said (default 30)")
    arguments = parser.parse_args()
    logs.configure("error", "console")
    started = time.monotonic()
    found = asyncio.run(soak(arguments.seconds))
    cut = {name for name, alive in found.items() if not alive}
    print(
        f"{len(found)} kinds of connection in {time.monotonic() - started:.0f} s; cut off: {', '.join(cut) or 'none'}"
    )
    sys.exit(0 if cut == {CUT_OFF} else 1)


if __name__ == "__main__":
    main()
