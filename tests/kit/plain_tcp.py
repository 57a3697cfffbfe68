# SPDX-License-Identifier: Apache-2.0
"""Apps that speak plain TCP to names and ports and know of nothing else: no variable, no socket file, no TLS.

plain_tcp.py serve NAME PORT...          answers every chunk with its name in front, IPv4 and IPv6
plain_tcp.py ask HOST PORT TEXT          prints what comes back; `refused` if the connection ends without
"""

from __future__ import annotations

import socket
import socketserver
import sys
import threading


def serve(name: str, ports: list[str]) -> None:
    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while chunk := self.request.recv(65536):
                self.request.sendall(name.encode() + b":" + chunk)

    class Server(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6
        allow_reuse_address = True
        daemon_threads = True

    for port in ports:
        threading.Thread(target=Server(("::", int(port)), Echo).serve_forever).start()
    print("app listening", file=sys.stderr, flush=True)


def ask(host: str, port: str, text: str) -> None:
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(text.encode())
        got = b""
        while not got.endswith(text.encode()):
            chunk = connection.recv(65536)
            if not chunk:
                break
            got += chunk
    print(got.decode(errors="replace") or "refused")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        try:
            ask(*sys.argv[2:])
        except OSError:
            print("refused")
