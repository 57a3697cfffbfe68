# SPDX-License-Identifier: Apache-2.0
"""Run a stock Envoy and web's app as two children; when one ends, the other is ended too."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence

from marblemesh.demo.envoy_binary import FLAGS, envoy_path
from marblemesh.demo.envoy_config import inside_bootstrap
from marblemesh.demo.errors import DemoError
from marblemesh.demo.lifeline import tied_to_us
from marblemesh.demo.web_with_envoy.settings import inside_settings


async def run_both(commands: Sequence[Sequence[str]]) -> int:
    """Run the commands until one ends or SIGTERM or SIGINT comes. Returns the exit status of the first that ended."""
    children: list[asyncio.subprocess.Process] = []
    ended: list[int] = []
    over = asyncio.Event()

    async def watch(child: asyncio.subprocess.Process) -> None:
        status = await child.wait()
        ended.append(status if status >= 0 else 128 - status)  # as a shell tells a signal
        over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with asyncio.TaskGroup() as group:
        for command in commands:
            child = await asyncio.create_subprocess_exec(*tied_to_us(command))
            children.append(child)
            group.create_task(watch(child))
        # Only now, when all are there: one that is started after the end was called for would not hear of it.
        await over.wait()
        for child in children:
            if child.returncode is None:
                child.terminate()
    return ended[0]


def main() -> int:
    try:
        config = json.dumps(inside_bootstrap(inside_settings(os.environ)))
        envoy = str(envoy_path())
    except DemoError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    # The configuration names files and sockets, and holds no secret: it may stand in an argument list.
    web = (sys.executable, "-m", "marblemesh.demo.emojivoto.web")
    return asyncio.run(run_both([(envoy, *FLAGS, "--config-yaml", config), web]))


if __name__ == "__main__":
    sys.exit(main())
