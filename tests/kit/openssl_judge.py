# SPDX-License-Identifier: Apache-2.0
"""OpenSSL's command as judge: what a port presents, what a certificate says, what verifies under what.

`s_client` runs beside the event loop, since the server under test is in it; the others are over in 5 ms.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.kit.programs import program

_SECONDS = 20
# Reading the machine's own anchors takes longer than everything else.
_NO_ANCHORS = ("-no-CApath", "-no-CAstore")
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----\n"


def openssl(*arguments: str, data: bytes = b"", directory: Path | None = None) -> bytes:
    """What the command prints; fails if it does."""
    done = _run(*arguments, data=data, directory=directory)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def certificates(pem: bytes) -> list[bytes]:
    """Each certificate of a text, in PEM."""
    return [_BEGIN + part.partition(_END)[0] + _END for part in pem.split(_BEGIN)[1:]]


def x509(pem: bytes, *flags: str) -> str:
    """`openssl x509` on the first certificate of a PEM text, without blanks around the lines."""
    return _tidy(openssl("x509", "-noout", *flags, data=pem))


def extension(pem: bytes, name: str) -> str:
    """An extension as OpenSSL prints it, its heading ("… critical") included; empty if there is none."""
    return "\n".join(x509(pem, "-ext", name).splitlines())


def public_key(pem: bytes, of: str = "x509") -> bytes:
    """The public key of a certificate (`x509`), a request (`req`) or a private key (`pkey`), DER."""
    flags = ("-pubout",) if of == "pkey" else ("-noout", "-pubkey")
    return openssl("pkey", "-pubin", "-outform", "DER", data=openssl(of, *flags, data=pem))


def verifies(leaf: bytes, anchor: bytes, *flags: str, untrusted: bytes = b"") -> bool:
    """Does `openssl verify` accept this certificate under this anchor? All PEM."""
    files = {"leaf": leaf, "anchor": anchor} | ({"untrusted": untrusted} if untrusted else {})
    more = ["-untrusted", "untrusted"] if untrusted else []
    return _judged(files, "verify", *flags, "-CAfile", "anchor", *more, "leaf")


def signed(public_key_pem: bytes, signature: bytes, data: bytes, digest: str = "sha256") -> bool:
    """Does `openssl dgst` accept this signature over `data`?"""
    files = {"key": public_key_pem, "signature": signature, "data": data}
    return _judged(files, "dgst", f"-{digest}", "-verify", "key", "-signature", "signature", "data")


@dataclass(frozen=True, slots=True)
class Handshake:
    """What `openssl s_client` saw; `ok` if there was a handshake and no alert after it."""

    ok: bool
    text: str

    @property
    def presented(self) -> list[bytes]:
        """The certificates that the server sent, leaf first, PEM."""
        return certificates(self.text.encode())

    def line(self, start: str) -> str:
        """What follows `start` on the line that begins with it; empty if there is none."""
        lines = (line.strip() for line in self.text.splitlines())
        return next((line[len(start) :].strip() for line in lines if line.startswith(start)), "")


async def s_client(port: int, *flags: str, say: bytes = b"") -> Handshake:
    """Shake hands, say something, and leave; what the server answers within a moment is in the text.

    A server of TLS 1.3 says only after the client's end of the handshake that it misses a certificate: so the session
    ends (a Q on standard input) a moment later.
    """
    anchors = _NO_ANCHORS if "-CAfile" in flags else (*_NO_ANCHORS, "-no-CAfile")
    process = await asyncio.create_subprocess_exec(
        program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-showcerts", *anchors, *flags,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    out = bytearray()
    async with asyncio.timeout(_SECONDS):
        while data := await process.stdout.read(65536):
            out += data
            if b"Verify return code" in out and not process.stdin.is_closing():
                process.stdin.write(say)
                await asyncio.sleep(0.05)
                process.stdin.write(b"Q\n")
                process.stdin.close()
        await process.wait()
    text = out.decode("utf-8", "replace")
    broken = " alert " in text or "certificate verify failed" in text
    return Handshake("New, TLS" in text and not broken, text)


def _run(*arguments: str, data: bytes = b"", directory: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [program("openssl"), *arguments]
    return subprocess.run(command, input=data, cwd=directory, capture_output=True, timeout=_SECONDS, check=False)


def _judged(files: dict[str, bytes], *arguments: str) -> bool:
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            Path(name, file).write_bytes(content)
        return _run(*arguments, directory=Path(name)).returncode == 0


def _tidy(out: bytes) -> str:
    return "\n".join(line.strip() for line in out.decode().splitlines())
