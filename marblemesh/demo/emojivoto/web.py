# SPDX-License-Identifier: Apache-2.0
"""web: what visitors talk to.

GET /api/list -> the emoji; POST /api/vote {"choice", "ballot"} -> {"choice", "count"}, 400 for an emoji that is none;
GET /api/leaderboard -> {"total": n, "leaders": [{"shortcode", "unicode", "votes"}, ...]}, most votes first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import ClientSession, web

from marblemesh.demo.emojivoto.sockets import client, serve

EMOJI = web.AppKey("EMOJI", ClientSession)
VOTING = web.AppKey("VOTING", ClientSession)


async def list_all(request: web.Request) -> web.Response:
    async with request.app[EMOJI].get("/emoji") as found:
        return web.json_response(await found.json())


async def vote(request: web.Request) -> web.Response:
    ballot = await request.json()
    async with request.app[EMOJI].get(f"/emoji/{ballot['choice']}") as found:
        if found.status != 200:
            raise web.HTTPBadRequest(text=await found.text())
    async with request.app[VOTING].post("/votes", json=ballot) as counted:
        return web.Response(status=counted.status, body=await counted.read(), content_type=counted.content_type)


async def leaderboard(request: web.Request) -> web.Response:
    async with request.app[EMOJI].get("/emoji") as found:
        emoji = await found.json()
    async with request.app[VOTING].get("/votes") as counted:
        votes = await counted.json()
    leaders = [entry | {"votes": votes["results"].get(entry["shortcode"], 0)} for entry in emoji]
    leaders.sort(key=lambda entry: -entry["votes"])
    return web.json_response({"total": votes["total"], "leaders": leaders})


async def backends(app: web.Application) -> AsyncIterator[None]:
    async with client("EMOJI") as app[EMOJI], client("VOTING") as app[VOTING]:
        yield


def app() -> web.Application:
    app = web.Application(client_max_size=4096)
    app.cleanup_ctx.append(backends)
    app.add_routes(
        [web.get("/api/list", list_all), web.post("/api/vote", vote), web.get("/api/leaderboard", leaderboard)]
    )
    return app


if __name__ == "__main__":
    serve(app())
