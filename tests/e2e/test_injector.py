# SPDX-License-Identifier: Apache-2.0
"""The admission webhook as an API server has it: a process of its own, asked over TLS."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from marblemesh.injector.server import MAX_CONNECTIONS
from tests.kit.injector import ROOT, Injector, certificate_pair, injector, start
from tests.kit.json_patch import apply
from tests.kit.pods import patch_of, pod, review_of

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Injector]:
    with injector(tmp_path_factory.mktemp("injector"), "--coord-addr", "coordinator:2001") as found:
        yield found


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_labelled_pod_comes_back_as_a_marble(running: Injector, version: str) -> None:
    done = apply(pod(), patch_of(running.mutate(review_of(pod(), version=version))))
    container = done["spec"]["containers"][0]
    assert {"name": "EDG_MARBLE_COORDINATOR_ADDR", "value": "coordinator:2001"} in container["env"]
    assert container["resources"]["limits"]["sgx.intel.com/epc"] == "10Mi"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_it_denies_counts_and_is_healthy(running: Injector) -> None:
    before = running.metric('marblemesh_injector_reviews_total{verdict="denied"}')
    response = running.mutate(review_of(pod(labels={})))
    assert response["status"]["message"] == "Missing [marblerun/marbletype] label, request denied"
    assert running.metric('marblemesh_injector_reviews_total{verdict="denied"}') == before + 1
    assert running.metric("marblemesh_injector_certificate_expiry_timestamp_seconds") > time.time()
    assert running.curl("/healthz") == (200, "ok\n")


def test_what_is_no_review_gets_a_status_and_nothing_more(running: Injector) -> None:
    assert running.curl("/mutate", body=b"{}") == (400, "malformed AdmissionReview\n")
    assert running.curl("/mutate", "-H", "Content-Type: text/plain", "-d", "x")[0] == 415
    assert running.curl("/mutate") == (405, "method not allowed\n")
    assert running.curl("/other") == (404, "not found\n")
    assert running.curl("/healthz", body=b"x")[0] == 405


def test_a_body_that_is_too_long_is_not_read(running: Injector) -> None:
    large = b" " * (3 * 1024 * 1024 + 1)
    assert running.curl("/mutate", "-H", "Expect:", body=large)[0] == 413
    assert running.curl("/mutate", "-H", "Expect:", "-H", "Transfer-Encoding: chunked", body=large)[0] == 413


def test_plain_http_and_half_a_request_leave_it_serving(running: Injector) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(4096):
            pass
    context = ssl.create_default_context(cadata=running.certificate.read_text())
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=10)
    with connection, context.wrap_socket(connection, server_hostname="localhost") as half:
        half.sendall(
            b"POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert running.curl("/healthz")[0] == 200
        answer = half.recv(4096)  # after its deadline of five seconds
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_connections_that_ask_nothing_keep_nobody_out(running: Injector) -> None:
    context = ssl.create_default_context(cadata=running.certificate.read_text())
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=10))
            stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
        assert running.curl("/healthz") == (200, "ok\n")
        assert running.mutate(review_of(pod()))["allowed"] is True


def test_a_changed_certificate_is_served_at_once_and_a_broken_one_is_not(tmp_path: Path) -> None:
    with injector(tmp_path) as running:
        first = running.certificate.read_bytes()
        second, key = certificate_pair("second")
        running.replace(certificate=second)  # its key is still the first one's
        assert running.curl("/healthz", ca=first)[0] == 200
        running.replace(key=key)
        assert running.curl("/healthz", ca=second)[0] == 200
        with pytest.raises(ConnectionError, match="certificate"):
            running.curl("/healthz", ca=first)
        running.replace(certificate=b"nothing", key=b"of use")
        assert running.curl("/healthz", ca=second)[0] == 200
        running.certificate.unlink()
        assert running.curl("/healthz", ca=second)[0] == 200
        running.replace(certificate=second, key=key)
        assert running.metric("marblemesh_injector_certificate_reload_failures") == 3
        assert running.stop() == 0


def test_what_it_cannot_start_with_is_one_line_and_a_status(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.wait(timeout=30) == 1
        assert process.stderr is not None
        line = process.stderr.read()
    assert line == f"marblemesh injector: cannot read {tmp_path}/tls.crt: No such file or directory\n"


def test_the_command_line_reads_stdin_and_reports_on_stderr() -> None:
    text = (ROOT / "tests" / "data" / "kubernetes" / "emojivoto.yaml").read_text()
    command = [sys.executable, "-m", "marblemesh", "inject", "-o", "json"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=True)
    outcomes = [item["outcome"] for item in json.loads(done.stderr)["objects"]]
    assert outcomes.count("injected") == 4
    assert done.stdout.count("name: EDG_MARBLE_TYPE") == 4
