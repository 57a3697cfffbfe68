# SPDX-License-Identifier: Apache-2.0
"""The worker as the app's parent: `marblemesh proxy run -- <command>`. The image has to contain it."""

from __future__ import annotations

from marblemesh.inject.context import PodContext
from marblemesh.inject.report import Level

WRAPPER = ("marblemesh", "proxy", "run", "--")


def wrap_command(context: PodContext, container: str) -> None:
    """Put the worker before the container's command; its arguments stay. Without a command nothing is known to wrap."""
    path = ("spec", "containers", container, "command")
    command = context.draft.get(*path)
    if not command or not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        context.note(
            Level.WARNING,
            f"container {container} has no command, and what its image starts is not known here: write it into "
            f"'command', or start '{' '.join(WRAPPER)} ...' in the image",
        )
    elif command[:3] == list(WRAPPER[:3]):
        context.note(Level.LEFT, f"command of container {container}: it starts the worker already")
    else:
        context.draft.prepend(path, list(WRAPPER))
