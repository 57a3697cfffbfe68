# SPDX-License-Identifier: Apache-2.0
"""An app that gets its identity by py-spiffe, and talks mTLS by spiffe-tls: neither knows anything of this mesh.

spiffe_app.py watch [UID]        say each identity that comes, as JSON on standard error; as that user, if given
spiffe_app.py dial HOST:PORT ID  connect, expect that SPIFFE ID there, send "hello", say what comes back
spiffe_app.py listen PORT        answer each client with the SPIFFE ID of its certificate

Where the Workload API is comes from SPIFFE_ENDPOINT_SOCKET alone. Ends on SIGTERM, or when its work is done.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

from cryptography import x509
from OpenSSL import SSL, crypto
from spiffe import SpiffeId, WorkloadApiClient, X509Source
from spiffe.workloadapi.x509_context import X509Context
from spiffetls import ListenOptions, dial, listen
from spiffetls.tlsconfig.authorize import authorize_any, authorize_id

PATIENCE = 30.0


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), file=sys.stderr, flush=True)


def show(context: X509Context) -> None:
    svid = context.default_svid
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    assert bundle is not None
    say(
        "svid",
        id=str(svid.spiffe_id),
        serial=f"{svid.leaf.serial_number:x}",
        chain=len(svid.cert_chain),
        authorities=len(bundle.x509_authorities),
    )


def watch(uid: str = "") -> None:
    if uid:
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    client = WorkloadApiClient(default_timeout=PATIENCE)
    try:
        try:
            client.fetch_jwt_svid({"somebody"})
        except Exception as error:
            say("jwt", error=str(error))
        try:
            say("bundles", trust_domains=[b.trust_domain.name for b in client.fetch_x509_bundles().bundles])
        except Exception as error:
            say("refused", error=str(error))
            return
        watching = client.stream_x509_contexts(show, lambda error: say("lost", error=str(error)))
        ended.wait()
        watching.cancel()
    finally:
        client.close()


def ask(address: str, expected: str) -> None:
    with X509Source(timeout_in_seconds=PATIENCE) as source:
        connection = dial(address, source, authorize_fn=authorize_id(SpiffeId(expected)))
        connection.sendall(b"hello")
        say("answer", text=connection.recv(1024).decode())
        connection.shutdown()
        connection.close()


def answer(port: str) -> None:
    with X509Source(timeout_in_seconds=PATIENCE) as source:
        listener = listen(f"127.0.0.1:{port}", source, ListenOptions(authorize_fn=authorize_any()))
        say("spiffe-tls accepts")
        while True:
            connection, _ = listener.accept()
            try:
                connection.do_handshake()
                connection.sendall(peer_id(connection.get_peer_certificate()).encode())
                connection.recv(1)  # until the client has read it and hangs up
            except SSL.Error as error:
                say("handshake failed", error=str(error))
            connection.close()


def peer_id(certificate: crypto.X509 | None) -> str:
    assert certificate is not None
    names = certificate.to_cryptography().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)[0]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["watch", *uid]:
            watch(*uid)
        case ["dial", address, expected]:
            ask(address, expected)
        case ["listen", port]:
            answer(port)
