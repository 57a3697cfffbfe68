# SPDX-License-Identifier: Apache-2.0
"""A few of the workers of xds_scale as real grpcio clients, which verify the server: so that what is measured with our
own light clients is what others see, too."""

from __future__ import annotations

import asyncio
import pickle
import time
from pathlib import Path

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.struct_pb2 import Struct

from bench.xds_scale_clients import ADS, SECRETS
from bench.xds_scale_town import Place
from sds.discovery_client import DeltaClient
from sds.identity import COORDINATOR_DNS_NAME
from sds.resources import BUNDLE_NAME, CLUSTER, ENDPOINT, LISTENER, SECRET
from sds.wire.discovery_pb2 import Node

PATIENCE = 60.0


class Foreign:
    """One worker. `bundles` counts the ROOTCAs that it got and acknowledged."""

    def __init__(self, where: Place, chain: bytes, key: bytes, root: bytes) -> None:
        self._where = where
        self._credentials = grpc.ssl_channel_credentials(root, key, chain)
        self._ready = asyncio.Event()
        self.bundles = 0
        self.last = 0.0
        self.error = ""

    async def run(self, port: int) -> None:
        options = (
            ("grpc.ssl_target_name_override", COORDINATOR_DNS_NAME),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
        )
        metadata = Struct()
        metadata.update({"ADVERTISE": self._where.addresses[0]})
        client = DeltaClient(Node(id=f"{self._where.marble_type}/{self._where.uuid}", metadata=metadata))
        for type_url, names in (
            (CLUSTER, ["*"]),
            (LISTENER, ["*"]),
            (SECRET, SECRETS),
            (ENDPOINT, self._where.endpoints),
        ):
            client.subscribe(type_url, names)
        client.connected()
        answered: set[str] = set()
        try:
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", self._credentials, options) as channel:
                call = channel.stream_stream(f"{ADS}DeltaAggregatedResources")()
                while True:
                    while (body := client.take()) is not None:
                        await call.write(body)
                    data = await call.read()
                    if data is grpc.aio.EOF:
                        raise ConnectionResetError(await call.details())
                    update = client.receive_bytes(data)
                    client.ack(update)
                    if any(resource.name == BUNDLE_NAME for resource in update.resources):
                        self.bundles += 1
                        self.last = time.monotonic()
                    answered.add(update.type_url)
                    if answered >= {CLUSTER, LISTENER, SECRET, ENDPOINT}:
                        self._ready.set()
        except (grpc.aio.AioRpcError, ConnectionResetError) as e:
            self.error = str(e)
            self._ready.set()

    async def ready(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._ready.wait()


def foreign_workers(identities: Path, root: str, numbers: range) -> list[Foreign]:
    intermediate, written = pickle.loads(identities.read_bytes())
    found = []
    for where, leaf, key in written[numbers.start : numbers.stop]:
        chain = b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in (leaf, intermediate))
        found.append(Foreign(where, chain, key, root.encode()))
    return found
