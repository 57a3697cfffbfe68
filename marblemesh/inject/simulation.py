# SPDX-License-Identifier: Apache-2.0
"""A simulated machine: all pods of a mesh have the same keys of one, out of a Secret, and state of their own."""

from __future__ import annotations

from marblemesh.inject.context import PodContext
from marblemesh.inject.names import PLATFORM_DIR
from marblemesh.inject.volumes import mount_volume

SECRET = "simulated-platform"  # noqa: S105 - its name


def add_simulation(context: PodContext) -> None:
    """Mount what EDG_SIMULATED_PLATFORM_DIR names: the Secret in a directory in memory."""
    source = {"emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}}
    mount_volume(context, "simulated-machine", source, PLATFORM_DIR, read_only=False)
    keys = {"secret": {"secretName": SECRET, "defaultMode": 0o440}}
    mount_volume(context, SECRET, keys, f"{PLATFORM_DIR}/identity", read_only=True)
