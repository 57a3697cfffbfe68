# SPDX-License-Identifier: Apache-2.0
"""emoji: knows which emoji there are.

GET /emoji -> [{"shortcode", "unicode"}, ...]; GET /emoji/{shortcode} -> one of them or 404.
"""

from __future__ import annotations

from aiohttp import web

from marblemesh.demo.emojivoto.sockets import serve

EMOJI = {
    ":doughnut:": "\N{DOUGHNUT}",
    ":pizza:": "\N{SLICE OF PIZZA}",
    ":tada:": "\N{PARTY POPPER}",
    ":rocket:": "\N{ROCKET}",
    ":100:": "\N{HUNDRED POINTS SYMBOL}",
    ":sunglasses:": "\N{SMILING FACE WITH SUNGLASSES}",
    ":ghost:": "\N{GHOST}",
    ":cat:": "\N{CAT FACE}",
}


async def list_all(_: web.Request) -> web.Response:
    return web.json_response([{"shortcode": code, "unicode": char} for code, char in EMOJI.items()])


async def find(request: web.Request) -> web.Response:
    code = request.match_info["shortcode"]
    if code not in EMOJI:
        raise web.HTTPNotFound(text=f"no emoji {code}")
    return web.json_response({"shortcode": code, "unicode": EMOJI[code]})


def app() -> web.Application:
    app = web.Application()
    app.add_routes([web.get("/emoji", list_all), web.get("/emoji/{shortcode}", find)])
    return app


if __name__ == "__main__":
    serve(app())
