# SPDX-License-Identifier: Apache-2.0
"""The endpoints as several relay processes know them: each balances for itself and is asked when somebody looks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from enclave_proxy.cluster_views import joint_status
from enclave_proxy.clusters import Clusters, ClusterStatus
from enclave_proxy.relay_child import OrderFailed, RelayChild

# Seconds that somebody who looks waits for a process that is busy; what it knows is then left out.
PATIENCE = 2.0


class FleetClusters:
    """`children` gives those that live now."""

    def __init__(self, own: Clusters, children: Callable[[], list[RelayChild]]) -> None:
        self._own = own
        self._children = children

    async def look(self) -> tuple[ClusterStatus, ...]:
        """What all of them know, as one."""
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(_ask(child)) for child in self._children()]
        return joint_status([self._own.status(), *(task.result() for task in asked)])


async def _ask(child: RelayChild) -> tuple[ClusterStatus, ...]:
    try:
        await child.order({"look": True}, patience=PATIENCE)
    except OrderFailed:
        return ()
    return child.clusters
