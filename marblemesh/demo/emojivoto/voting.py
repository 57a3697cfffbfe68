# SPDX-License-Identifier: Apache-2.0
"""voting: counts votes, in memory.

POST /votes {"choice": shortcode, "ballot": text} -> {"choice", "count"}; a ballot counts once, a second use is 409.
GET /votes -> {"total": n, "results": {shortcode: n}}.
"""

from __future__ import annotations

from collections import Counter

from aiohttp import web

from marblemesh.demo.emojivoto.sockets import serve

# A ballot box for a demo that runs for a day at 10 votes a second; then it is full, rather than the memory.
MAX_BALLOTS = 1_000_000


class BallotBox:
    """Which emoji has how many votes, and which ballots were cast."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._ballots: set[str] = set()

    async def vote(self, request: web.Request) -> web.Response:
        vote = await request.json()
        choice, ballot = str(vote["choice"]), str(vote["ballot"])
        if ballot in self._ballots:
            raise web.HTTPConflict(text=f"{ballot} was cast already")
        if len(self._ballots) >= MAX_BALLOTS:
            raise web.HTTPInsufficientStorage(text="the ballot box is full")
        self._ballots.add(ballot)
        self._count[choice] += 1
        return web.json_response({"choice": choice, "count": self._count[choice]})

    async def results(self, _: web.Request) -> web.Response:
        return web.json_response({"total": self._count.total(), "results": dict(self._count.most_common())})


def app() -> web.Application:
    box = BallotBox()
    app = web.Application(client_max_size=4096)
    app.add_routes([web.post("/votes", box.vote), web.get("/votes", box.results)])
    return app


if __name__ == "__main__":
    serve(app())
