# SPDX-License-Identifier: Apache-2.0
"""Servers that know nothing of us behind a worker, as docs/apps.md says: gunicorn and uvicorn by the variables that
they read themselves, nginx and Redis by those that every app gets. nginx also dials: its peers are the two others.
One mesh is run, and looked at by all tests.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.kit.mesh import PATIENCE, Json, MeshHarness, RunningWorker, free_port
from tests.kit.programs import program

pytestmark = pytest.mark.e2e

WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [("gunicorn " + environ["PATH_INFO"]).encode()]
"""
ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": ("uvicorn " + scope["path"]).encode()})
"""
NGINX = """
user root;
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    server {
        listen @LISTEN@;
        location / { return 200 "nginx\\n"; }
        location /wsgi/ { proxy_pass http://@WSGI@:/; }
        location /asgi/ { proxy_pass http://@ASGI@:/; }
    }
}
"""
RUN_NGINX = """
sed -e "s|@LISTEN@|$MARBLEMESH_LISTEN_{0}|" -e "s|@WSGI@|$MARBLEMESH_DIAL_GUNICORN_{1}|" \
    -e "s|@ASGI@|$MARBLEMESH_DIAL_UVICORN_{2}|" nginx.template > nginx.conf
exec nginx -p . -c nginx.conf
"""
RUN_REDIS = 'exec redis-server --port 0 --save "" --unixsocket "${{MARBLEMESH_LISTEN_{0}#unix:}}"'


@dataclass(frozen=True)
class Story:
    """What was seen of one run."""

    nginx: str
    wsgi: str
    asgi: str
    redis: list[str]
    statuses: dict[str, int]


async def tell() -> Story:
    g, u, n, r = (str(free_port()) for _ in range(4))
    tags: Json = {
        "gunicorn": {"Incoming": [{"Port": g, "Peers": ["nginx"]}]},
        "uvicorn": {"Incoming": [{"Port": u, "Peers": ["nginx"]}]},
        "nginx": {
            "Incoming": [{"Port": n, "Peers": ["web"]}],
            "Outgoing": [{"Addr": "gunicorn", "Port": g}, {"Addr": "uvicorn", "Port": u}],
        },
        "redis": {"Incoming": [{"Port": r, "Peers": ["web"]}]},
        "web": {"Outgoing": [{"Addr": "nginx", "Port": n}, {"Addr": "redis", "Port": r}]},
    }
    files = {"gunicorn": {"app.py": WSGI}, "uvicorn": {"app.py": ASGI}, "nginx": {"nginx.template": NGINX}}
    with TemporaryDirectory(prefix="mm-") as directory:
        async with MeshHarness(Path(directory)) as mesh:
            await mesh.start_coordinator()
            marbles: Json = {name: {"Parameters": {"Files": files.get(name, {})}} for name in tags}
            await mesh.set_manifest(mesh.manifest(marbles, tags))
            servers = {
                "gunicorn": await mesh.start_worker("gunicorn", sys.executable, "-m", "gunicorn", "app:app"),
                "uvicorn": await mesh.start_worker("uvicorn", sys.executable, "-m", "uvicorn", "app:app"),
                "nginx": await mesh.start_worker("nginx", "sh", "-c", RUN_NGINX.format(n, g, u)),
                "redis": await mesh.start_worker("redis", "sh", "-c", RUN_REDIS.format(r)),
            }
            web = await mesh.start_worker("web", "sleep", "60")
            for worker in servers.values():
                await listens(worker)
            await web.ready()
            through = web.run_dir / f"nginx-{n}.sock"
            pages = [await get(through, path) for path in ("/", "/wsgi/a", "/asgi/b")]
            redis = str(web.run_dir / f"redis-{r}.sock")
            said = [await output("redis-cli", "-s", redis, *words) for words in (("SET", "k", "v"), ("GET", "k"))]
            for worker in servers.values():
                worker.send(signal.SIGTERM)
            statuses = {name: await worker.wait() for name, worker in servers.items()}
    return Story(*pages, said, statuses)


async def listens(worker: RunningWorker) -> None:
    """The app has taken the socket that it was told of."""
    async with asyncio.timeout(PATIENCE):
        while (await worker.admin("/readyz"))[0] != 200:
            await asyncio.sleep(0.05)


async def get(path: Path, target: str) -> str:
    return await output("curl", "-sS", "--fail", "--unix-socket", str(path), f"http://nginx{target}")


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-2)
    async with asyncio.timeout(PATIENCE):
        return (await process.communicate())[0].decode().strip()


@pytest.fixture(scope="module")
def story() -> Story:
    for name in ("nginx", "redis-server", "redis-cli", "curl"):
        program(name)
    return asyncio.run(tell())


def test_nginx_serves_on_the_variable_s_socket(story: Story) -> None:
    assert story.nginx == "nginx"


def test_gunicorn_serves_without_any_flag_and_nginx_dials_it(story: Story) -> None:
    assert story.wsgi == "gunicorn /a"


def test_uvicorn_serves_without_any_flag_and_nginx_dials_it(story: Story) -> None:
    assert story.asgi == "uvicorn /b"


def test_redis_serves_on_the_variable_s_path(story: Story) -> None:
    assert story.redis == ["OK", "v"]


def test_all_of_them_end_in_order_when_the_worker_is_told_to(story: Story) -> None:
    assert story.statuses == {"gunicorn": 0, "uvicorn": 128 + signal.SIGTERM, "nginx": 0, "redis": 0}
