# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes pod of ours as processes on this machine: its own network, its volumes at their places, a root file
system that cannot be written, and of the environment only what the pod says. The image's program is this repository's.

Takes root. What it does not show: the pod's user, as the interpreter may lie where only root can read.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.kit.netns import Namespace

Object = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Cluster:
    """What pods share: names of Services, Secrets as folders, and a place for volumes and logs."""

    folder: Path
    hosts: Mapping[str, str]
    secrets: Mapping[str, Path]

    def start(self, name: str, template: Object, namespace: Namespace, address: str) -> subprocess.Popen[bytes]:
        """The pod's one container; `address` is the pod's."""
        place = self.folder / name
        place.mkdir()
        hosts = self.folder / f"{name}.hosts"
        names = {"localhost": "127.0.0.1", **self.hosts}
        hosts.write_text("".join(f"{ip} {host}\n" for host, ip in names.items()))
        (container,) = template["spec"]["containers"]
        fields = {"status.podIP": address, "metadata.uid": str(uuid4())}
        script = [
            f"mount -t tmpfs none {place} && mkdir {place}/upper {place}/work {place}/root",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={place}/upper,workdir={place}/work {place}/root",
            f"mount --rbind /dev {place}/root/dev && mount -t proc proc {place}/root/proc",
        ]
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        data = self.folder / f"{name}.volumes"
        for mount in sorted(container["volumeMounts"], key=lambda entry: str(entry["mountPath"])):
            source = self._source(data, mount, volumes.get(mount["name"], {}), fields)
            inside = f"{place}/root{mount['mountPath']}"
            script.append(f"mkdir -p {inside} && mount --bind {source} {inside}")
            if mount.get("readOnly"):
                script.append(f"mount -o remount,bind,ro {inside}")
        # After the volumes: the program may lie below one of their places (/tmp), or on another file system than `/`.
        for part in dict.fromkeys((REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))):
            inside = f"{place}/root{part}"
            script.append(f"mkdir -p {inside} && mount --bind {part} {inside} && mount -o remount,bind,ro {inside}")
        script.append(f"mount --bind {hosts} {place}/root/etc/hosts && mount -o remount,ro {place}/root")
        arguments = shlex.join([sys.executable, "-P", "-m", "marblemesh", *container["args"]])
        env = shlex.join([f"{key}={value}" for key, value in self._environment(container, fields).items()])
        script.append(f"exec env -i {env} chroot {place}/root {arguments}")
        command = ("unshare", "--mount", "sh", "-ec", "\n".join(script))
        return namespace.start(*command, log=self.folder / f"{name}.log")

    def _source(self, data: Path, mount: Object, volume: Object, fields: Mapping[str, str]) -> Path:
        if "secret" in volume:
            return self.secrets[volume["secret"]["secretName"]]
        source = data / mount["name"] / mount.get("subPath", "")
        source.mkdir(parents=True, exist_ok=True)
        for item in volume.get("downwardAPI", {}).get("items", []):
            (source / item["path"]).write_text(fields[item["fieldRef"]["fieldPath"]])
        return source

    def _environment(self, container: Object, fields: Mapping[str, str]) -> dict[str, str]:
        env: dict[str, str] = {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"}
        for entry in container["env"]:
            value = entry.get("value")
            if value is None:
                value = fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            for name, known in env.items():
                value = value.replace(f"$({name})", known)
            env[entry["name"]] = value
        return env
