# SPDX-License-Identifier: Apache-2.0
"""The admission webhook as a process, with certificates of its own, asked by curl."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.kit.programs import program

ROOT = Path(__file__).resolve().parents[2]


def certificate_pair(name: str) -> tuple[bytes, bytes]:
    """A self-signed certificate for localhost, and its key, in PEM; `name` is its subject."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


class Injector:
    """A running webhook. `certificate` and `key` are the files that it serves with."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], port: int) -> None:
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.process = process
        self.port = port
        self._folder = folder

    def replace(self, certificate: bytes | None = None, key: bytes | None = None) -> None:
        """New files by renaming, as a Secret's volume is changed."""
        for path, data in ((self.certificate, certificate), (self.key, key)):
            if data is not None:
                new = path.with_suffix(".new")
                new.write_bytes(data)
                new.rename(path)

    def curl(self, path: str, *arguments: str, body: bytes | None = None, ca: bytes | None = None) -> tuple[int, str]:
        """HTTP status and body over verified TLS; `ca`: whom to trust, by default the certificate in its file."""
        trusted = self._folder / "trusted.pem"
        trusted.write_bytes(ca or self.certificate.read_bytes())
        sent: list[str] = []
        if body is not None:
            file = self._folder / "body"
            file.write_bytes(body)
            sent = ["--data-binary", f"@{file}", "-H", "Content-Type: application/json"]
        command = [program("curl"), "-sS", "--max-time", "20", "--cacert", str(trusted), "-w", "\n%{http_code}"]
        command += [*sent, *arguments, f"https://localhost:{self.port}{path}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0:
            raise ConnectionError(done.stderr)
        text, _, status = done.stdout.rpartition("\n")
        return int(status), text

    def mutate(self, body: bytes) -> Any:
        """The `response` of the answered review."""
        status, text = self.curl("/mutate", body=body)
        assert status == 200, text
        return json.loads(text)["response"]

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.curl("/metrics")[1], re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@contextlib.contextmanager
def injector(folder: Path, *flags: str) -> Iterator[Injector]:
    """Started on a free port and listening; killed at the end."""
    certificate, key = certificate_pair("first")
    (folder / "tls.crt").write_bytes(certificate)
    (folder / "tls.key").write_bytes(key)
    with start(folder, "--listen", "127.0.0.1:0", *flags) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if (event := json.loads(line))["event"] == "listening":
                yield Injector(folder, process, event["port"])
                break
        else:
            raise AssertionError(f"it ended with {process.wait(timeout=10)}")


@contextlib.contextmanager
def start(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """The process, with its files in `folder`."""
    files = ["--tls-cert-file", str(folder / "tls.crt"), "--tls-key-file", str(folder / "tls.key")]
    process = subprocess.Popen(
        [sys.executable, "-m", "marblemesh", "injector", *files, *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        if process.stderr is not None:
            process.stderr.close()
