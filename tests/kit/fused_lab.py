# SPDX-License-Identifier: Apache-2.0
"""A fused process without a mesh: the worker's side is a supervisor and its signals, with a configuration as given.

    python -m tests.kit.fused_lab '{"listens": {"8080": PATH}, "dials": {"db:5432": PATH}, "closed": true}' python ...

`outcome` is what the worker ends with whatever the app says, `fails` lets it break down while the app runs.
What the app dials is a UNIX socket of the test. The worker's log goes to standard error.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
from functools import partial

from structlog.typing import FilteringBoundLogger

from enclave_proxy.app_state import AppState
from enclave_proxy.errors import CommandError, ProxyError
from enclave_proxy.fused import Fused
from enclave_proxy.fused_logs import private_logger
from enclave_proxy.relay_config import Inbound, Outbound, PeerRule, RelayConfig, TcpAddress, UnixAddress
from enclave_proxy.restarts import RestartPolicy, Restarts
from enclave_proxy.signals import Signals
from enclave_proxy.supervisor import Supervisor
from sds.logs import configure
from tests.kit.pki import make_ca, marble


def config(listens: dict[str, str], dials: dict[str, str]) -> RelayConfig:
    """Routes by port and by `host:port`."""
    ca = make_ca()
    identity, bundle = marble(ca, "lab"), ca.bundle
    inbound = [
        Inbound(f"inbound|{port}", TcpAddress("127.0.0.1", int(port)), UnixAddress(path), identity, bundle)
        for port, path in listens.items()
    ]
    outbound = [
        Outbound(f"outbound|{name.replace(':', '|')}", UnixAddress(path), (), identity, bundle, PeerRule())
        for name, path in dials.items()
    ]
    return RelayConfig(tuple(inbound), tuple(outbound))


async def live(fused: Fused, command: list[str], settings: dict[str, object], log: FilteringBoundLogger) -> int:
    """The worker's part: start the app, pass signals on, wait for its end."""
    routes = config(settings.get("listens", {}), settings.get("dials", {}))  # type: ignore[arg-type]
    signals = Signals(fused.signals.caught)
    app = Supervisor(
        command=tuple(command),
        env={**os.environ, **settings.get("env", {})},  # type: ignore[dict-item]  # noqa: TID251
        restarts=Restarts(RestartPolicy.NEVER, random.random),
        patience=0,
        config=lambda: routes,
        state=AppState(),
        log=log,
        start=partial(fused.start, config=lambda: routes, closed=bool(settings.get("closed"))),
    )

    async def fail() -> None:
        if settings.get("fails"):
            await asyncio.sleep(0.1)
            raise RuntimeError("the worker cannot go on")

    async def when_told() -> None:
        await signals.ending.wait()
        app.stop(signals.number)
        await asyncio.sleep(float(settings.get("grace", 20)))  # type: ignore[arg-type]
        app.kill()

    with signals.installed():
        signals.attach(app)
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(when_told()), group.create_task(fail())]
            status = await app.run()
            for task in watching:
                task.cancel()
    return int(settings.get("outcome", status))  # type: ignore[call-overload, no-any-return]


def work(fused: Fused, command: list[str], settings: dict[str, object], log: FilteringBoundLogger) -> int:
    try:
        return asyncio.run(live(fused, command, settings, log))
    except ExceptionGroup as group:
        found, others = group.split(ProxyError)
        if found is None or others is not None:
            raise
        print(*found.exceptions, file=sys.stderr)
        return CommandError.exit_code


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    configure("info", "json")
    log = private_logger()
    settings, command = json.loads(sys.argv[1]), sys.argv[2:]
    fused = Fused(log)
    return fused.run(lambda: work(fused, command, settings, log))


if __name__ == "__main__":
    sys.exit(main())
