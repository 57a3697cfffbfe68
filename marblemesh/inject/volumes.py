# SPDX-License-Identifier: Apache-2.0
"""Two volumes: the pod's UID as the file that names the instance, and a directory in memory for sockets."""

from __future__ import annotations

from typing import Any

from marblemesh.inject.context import PodContext
from marblemesh.inject.draft import Path
from marblemesh.inject.environment import uuid_path
from marblemesh.inject.errors import Refused
from marblemesh.inject.names import RUN_PATH, RUN_VOLUME, UUID_VOLUME
from marblemesh.inject.report import Level

_MAX_TRIES = 10


def add_uuid_volume(context: PodContext) -> None:
    """Mount the pod's UID at `/<type>-uid` in each Marble container that has no mount there.

    The volume exists if any container needs it, whatever the others have mounted.
    """
    source = {
        "downwardAPI": {"items": [{"path": UUID_VOLUME, "fieldRef": {"fieldPath": "metadata.uid"}}]},
    }
    mount_volume(context, context.uuid_volume, source, uuid_path(context), read_only=True)


def add_run_volume(context: PodContext) -> None:
    """Mount an empty directory in memory at `/run/marblemesh`; it lives as long as the pod, through restarts."""
    source = {"emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}
    mount_volume(context, RUN_VOLUME, source, RUN_PATH, read_only=False)


def mount_volume(context: PodContext, wanted: str, source: dict[str, Any], path: str, *, read_only: bool) -> None:
    """Mount a volume at `path` in each Marble container that has nothing mounted there."""
    need = [name for name in context.containers if _is_free(context, name, path)]
    if not need:
        return
    volume = _volume(context, wanted, source)
    context.draft.append(("spec", "volumes"), {"name": volume, **source})
    for container in need:
        mount = {"name": volume, "mountPath": path}
        context.draft.append(_mounts(container), {**mount, "readOnly": True} if read_only else mount)


def _mounts(container: str) -> Path:
    return ("spec", "containers", container, "volumeMounts")


def _is_free(context: PodContext, container: str, path: str) -> bool:
    if not any(_same_path(mount.get("mountPath"), path) for mount in context.draft.items(*_mounts(container))):
        return True
    context.note(Level.LEFT, f"container {container} has a mount at {path} already")
    return False


def _same_path(present: Any, path: str) -> bool:
    return isinstance(present, str) and present.rstrip("/") == path


def _volume(context: PodContext, wanted: str, source: dict[str, Any]) -> str:
    """The name: `wanted`, unless the pod has something else of that name."""
    present = {str(volume.get("name")): volume for volume in context.draft.items("spec", "volumes")}
    for number in range(1, _MAX_TRIES):
        name = wanted if number == 1 else f"{wanted}-{number}"
        if name not in present or _is_source(present[name], source):
            return name
    raise Refused(f"spec.volumes: {wanted!r} and {_MAX_TRIES - 2} more names after it are taken")


def _is_source(volume: dict[str, Any], source: dict[str, Any]) -> bool:
    return {name: value for name, value in volume.items() if name != "name"} == source
