# SPDX-License-Identifier: Apache-2.0
"""Labels, annotations, variables and volumes. Those beginning with `marblerun` and `EDG_` are MarbleRun's, spelled as
its injector and its Marbles know them."""

from __future__ import annotations

MARBLE_TYPE = "marblerun/marbletype"
MARBLE_CONTAINER = "marblerun/marblecontainer"
RESOURCE_INJECTION = "marblerun/resource-injection"

# What was added, so that it can be taken out again: see record.py.
RECORD = "marblemesh/injected"
# `disabled`: the Marble has no worker of ours (EGo's premain, say), and gets what MarbleRun's injector gives.
WORKER = "marblemesh/worker"
DISABLED = "disabled"

UUID_VOLUME = "uuid-file"
RUN_VOLUME = "marblemesh-run"
RUN_PATH = "/run/marblemesh"
PLATFORM_DIR = "/simulated-platform"
ADMIN_PORT = "mesh-admin"

# The sidecars of other meshes (Linkerd's own list), beside which a pod has its Marbles.
SIDECARS = frozenset(
    {"linkerd-proxy", "linkerd-init", "linkerd-debug", "linkerd-network-validator", "istio-proxy", "istio-init"}
)
