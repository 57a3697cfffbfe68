# SPDX-License-Identifier: Apache-2.0
"""The configurations of the other proxies and of the app: TLS 1.3, a required client certificate, no session
resumption (ours has none), one thread, plain bytes to the app's UNIX socket. Texts only."""

from __future__ import annotations

import os
from pathlib import Path


def envoy(folder: Path, app: Path, port: int, peer_prefix: str) -> dict[str, object]:
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "disable_stateless_session_resumption": True,
        "disable_stateful_session_resumption": True,
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(folder / "server.pem")},
                    "private_key": {"filename": str(folder / "server.key")},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(folder / "ca.pem")},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": peer_prefix}}],
            },
        },
    }
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "in",
        "cluster": "app",
    }
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(app)}}}}
    chain = {
        "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}],
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    }
    # Envoy opens 1024 connections to a cluster and no more unless told so.
    many = {"max_connections": 100_000, "max_pending_requests": 100_000}
    cluster = {
        "name": "app",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def nginx_stream(folder: Path, app: Path, port: int) -> str:
    return f"""\
load_module modules/ngx_stream_module.so;
{_nginx_head(folder, "nginx")}
stream {{
    server {{
        listen 127.0.0.1:{port} ssl backlog=4096 so_keepalive=on;
        tcp_nodelay on;
        ssl_protocols TLSv1.3;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.key;
        ssl_client_certificate {folder}/ca.pem;
        ssl_verify_client on;
        ssl_verify_depth 3;
        ssl_session_tickets off;
        ssl_session_cache off;
        proxy_pass unix:{app};
    }}
}}
"""


def haproxy(folder: Path, app: Path, port: int) -> str:
    return f"""\
global
    nbthread 1
    maxconn 9000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend in
    bind 127.0.0.1:{port} backlog 4096 ssl crt {folder}/server-all.pem ca-file {folder}/ca.pem verify required \
ssl-min-ver TLSv1.3 no-tls-tickets
    default_backend app
backend app
    server app unix@{app}
"""


def app(folder: Path, socket: Path) -> str:
    """An HTTP server: a small reply, a file to fetch, and a place that takes whatever is sent."""
    return f"""\
{_nginx_head(folder, "app")}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 3600;
    client_max_body_size 0;
    sendfile on;
    tcp_nodelay on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen unix:{socket} backlog=4096;
        location = /small {{ return 200 "ok"; }}
        location = /big {{ alias {folder}/big; }}
        location = /up {{ return 204; }}
    }}
}}
"""


def _nginx_head(folder: Path, name: str) -> str:
    user = "user root root;\n" if os.geteuid() == 0 else ""
    return f"""\
{user}daemon off;
master_process off;
worker_rlimit_nofile 65536;
error_log {folder}/{name}.log warn;
pid {folder}/{name}.pid;
events {{ worker_connections 20000; }}
"""
