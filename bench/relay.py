# SPDX-License-Identifier: Apache-2.0
"""The worker's relay against Envoy, nginx and HAProxy: CPU per request, connection and GB, latency, memory.

Every proxy has the same certificates, the same app behind a UNIX socket and the same core to itself in turn; load and
app have the other one. Within a round each thing is measured on one proxy after the other, so that what else the
machine does meets all of them; a ratio is the median of the rounds' own ratios of ours to the peer. Memory is read from
fresh processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import ROOT, Figure, cpu_seconds, pin, resident_bytes, write_result
from bench.relay_load import Bulk, Clients, connect, new_connections, percentile
from bench.relay_peers import PEERS, STARTS, WHOLE, Place, free_port, issue, make_place, start_app, wait_for
from bench.relay_plot import plot
from sds.ca import CertificateAuthority
from sds.tls import client_context

MEGABYTE = 1_000_000
BIG = 64 * 1024 * 1024
KEPT = 512
LATENCY_CONNECTIONS = 64
LATENCY_SECONDS = 3.0
IDLE_CONNECTIONS = 5000
STRANGERS = 100
# name: unit
UNITS = {
    "cpu_per_request_1": "µs",
    "cpu_per_request": "µs",
    "cpu_per_request_512": "µs",
    "cpu_per_connection": "µs",
    "cpu_per_connection_first": "µs",
    "cpu_per_gb": "s",
    "peak_rate": "1/s",
    "p50": "ms",
    "p99": "ms",
    "p999": "ms",
    "rss_idle": "MB",
    "rss_idle_whole": "MB",
    "rss_5000": "MB",
    "bytes_per_idle_connection": "bytes",
}
Samples = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that runs, pinned to its core."""

    name: str
    process: subprocess.Popen[bytes]
    port: int

    def cpu(self, work: Callable[[], object]) -> float:
        """CPU seconds that it spends on `work` and on what that leaves behind."""
        before = cpu_seconds(self.process.pid)
        work()
        time.sleep(0.3)
        return cpu_seconds(self.process.pid) - before


@dataclass
class Run:
    """Everything that is measured, by measure and proxy."""

    place: Place
    ca: CertificateAuthority
    core: int
    amounts: dict[str, int]
    samples: Samples = field(default_factory=lambda: {m: {p: [] for p in PEERS} for m in UNITS})

    @property
    def tls(self) -> ssl.SSLContext:
        return client_context(self.place.identity("client"), self.place.bundle)

    @contextmanager
    def proxies(self, *names: str) -> Iterator[list[Proxy]]:
        running: list[Proxy] = []
        try:
            for name in names:
                port = free_port()
                running.append(Proxy(name, STARTS[name](self.place, port), port))
                wait_for(self.place, port, running[-1].process)
                pin(running[-1].process.pid, self.core)
            yield running
        finally:
            for proxy in running:
                proxy.process.kill()
                proxy.process.wait()

    def keep(self, measure: str, proxy: Proxy, value: float) -> None:
        self.samples[measure][proxy.name].append(value)

    # ---- the parts of a round

    def requests(self, proxy: Proxy, clients: Clients) -> None:
        for connections, measure in ((1, "cpu_per_request_1"), (32, "cpu_per_request"), (KEPT, "cpu_per_request_512")):
            count = self.amounts["requests"] // (4 if connections == 1 else 1)
            began = time.monotonic()
            took = proxy.cpu(lambda c=connections, n=count: clients.closed_loop(c, n))  # type: ignore[misc]
            self.keep(measure, proxy, took / count * 1e6)
            if connections == KEPT:
                self.keep("peak_rate", proxy, count / (time.monotonic() - began - 0.3))

    def connections(self, proxy: Proxy) -> None:
        count = self.amounts["connections"]
        clients = [self.tls] * count
        took = proxy.cpu(lambda: new_connections(proxy.port, clients))
        self.keep("cpu_per_connection", proxy, took / count * 1e6)

    def first_connections(self, proxy: Proxy, strangers: list[ssl.SSLContext]) -> None:
        took = proxy.cpu(lambda: new_connections(proxy.port, strangers))
        self.keep("cpu_per_connection_first", proxy, took / len(strangers) * 1e6)

    def strangers(self, number: int) -> list[ssl.SSLContext]:
        """Clients with certificates that no proxy has seen before this round."""
        first = number * STRANGERS
        marbles = [issue(self.ca, "client", first + i) for i in range(STRANGERS)]
        return [client_context(marble, self.place.bundle) for marble in marbles]

    def bulk(self, proxy: Proxy) -> None:
        took = proxy.cpu(Bulk(proxy.port, self.tls, BIG).run)
        self.keep("cpu_per_gb", proxy, took / (2 * BIG / 1e9))

    def latency(self, proxy: Proxy, clients: Clients, rate: float) -> None:
        found = clients.open_loop(LATENCY_CONNECTIONS, rate, LATENCY_SECONDS)
        for measure, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
            self.keep(measure, proxy, percentile(found, share) * 1e3)

    # ---- the whole

    def rounds(self, count: int) -> float:
        """All but memory; the rate of the latency measurement, half of what Envoy can carry."""
        with self.proxies(*PEERS) as proxies:
            clients = {p.name: Clients(p.port, self.tls, KEPT) for p in proxies}
            rate = self._half_of_envoys_peak(clients["envoy"])
            for number in range(1, count + 1):
                for proxy in proxies:
                    self.requests(proxy, clients[proxy.name])
                for proxy in proxies:
                    self.connections(proxy)
                strangers = self.strangers(number)
                for proxy in proxies:
                    self.first_connections(proxy, strangers)
                for proxy in proxies:
                    self.bulk(proxy)
                for proxy in proxies:
                    self.latency(proxy, clients[proxy.name], rate)
                print(f"round {number} of {count} done", flush=True)
            for of_proxy in clients.values():
                of_proxy.close()
        return rate

    def _half_of_envoys_peak(self, clients: Clients) -> float:
        count = self.amounts["requests"]
        clients.closed_loop(LATENCY_CONNECTIONS, count)  # warm
        rates = []
        for _ in range(5):
            began = time.monotonic()
            clients.closed_loop(LATENCY_CONNECTIONS, count)
            rates.append(count / (time.monotonic() - began))
        return statistics.median(rates) / 2

    def memory(self) -> None:
        """Of fresh processes: right after the start, and with many connections that are open and say nothing."""
        for name in PEERS:
            whole = WHOLE.get(name)
            if whole is not None:
                with self.proxies(whole) as (proxy,):
                    time.sleep(1.0)
                    self.samples["rss_idle_whole"][name].append(resident_bytes(proxy.process.pid) / MEGABYTE)
            with self.proxies(name) as (proxy,):
                time.sleep(1.0)
                idle = resident_bytes(proxy.process.pid)
                if whole is None:
                    self.keep("rss_idle_whole", proxy, idle / MEGABYTE)
                connections = [connect(proxy.port, self.tls) for _ in range(self.amounts["idle"])]
                time.sleep(1.0)
                full = resident_bytes(proxy.process.pid)
                self.keep("rss_idle", proxy, idle / MEGABYTE)
                self.keep("rss_5000", proxy, full / MEGABYTE)
                self.keep("bytes_per_idle_connection", proxy, (full - idle) / len(connections))
                for connection in connections:
                    connection.close()
            print(f"memory of {name} done", flush=True)


def compare(samples: Samples) -> dict[str, dict[str, dict[str, object]]]:
    """By measure and proxy: the figure, and how many times that proxy's ours is: `ratio` and its spread."""
    result: dict[str, dict[str, dict[str, object]]] = {}
    for measure, by_peer in samples.items():
        ours = by_peer["marblemesh"]
        result[measure] = {}
        for name, values in by_peer.items():
            ratio = Figure.of([round(mine / other, 3) for mine, other in zip(ours, values, strict=True)])
            result[measure][name] = {
                "figure": Figure.of(values),
                "ratio": round(ratio.median, 3),
                "ratio_spread": [ratio.low, ratio.high],
            }
    return result


def show(result: dict[str, dict[str, dict[str, object]]]) -> None:
    for measure, by_peer in result.items():
        for name, entry in by_peer.items():
            figure = entry["figure"]
            assert isinstance(figure, Figure)
            spread = f"{figure.median:12.2f} {UNITS[measure]:5} ({figure.low:.2f} … {figure.high:.2f})"
            print(f"{measure:26} {name:11} {spread}  ours/{name}: {entry['ratio']} {entry['ratio_spread']}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=relay", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
    parser.add_argument("--requests", type=int, default=20_000, help="small requests per measurement (default 20000)")
    parser.add_argument("--connections", type=int, default=400, help="new connections per measurement (default 400)")
    parser.add_argument("--idle", type=int, default=IDLE_CONNECTIONS, help="idle connections (default 5000)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # leave no proxy behind
    amounts = {"requests": options.requests, "connections": options.connections, "idle": options.idle}
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, set(cores[1:]))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    folder = Path(tempfile.mkdtemp(prefix="mmb"))
    try:
        run = Run(*make_place(folder), cores[0], amounts)
        app = start_app(run.place, BIG)
        try:
            wait_for(run.place, run.place.app, app)
            rate = run.rounds(options.rounds)
            run.memory()
        finally:
            app.kill()
            app.wait()
    finally:
        shutil.rmtree(folder)
    result = compare(run.samples)
    show(result)
    print(f"latency: open loop, {rate:.0f} requests/s (half of Envoy's peak), {LATENCY_CONNECTIONS} connections")
    written = write_result("relay", {"latency_rate": rate, **result})
    pictures = plot(result, UNITS, written.with_suffix(".svg"))
    print(f"written: {os.path.relpath(written, ROOT)}, {os.path.relpath(pictures, ROOT)}")
    return 0
