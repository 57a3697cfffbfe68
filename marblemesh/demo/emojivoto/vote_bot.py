# SPDX-License-Identifier: Apache-2.0
"""vote-bot: the visitors. Votes through web, and says how it went as JSON lines on standard output.

`VOTES` is how many votes to send (0: for ever), `RATE` how many a second at most (0: as fast as they are answered).
Progress: {"votes", "failures"}; at the end {"votes", "failures", "errors", "leaderboard", "seconds", "result": true}.
A vote that fails is counted and never sent again: what the mesh loses, one sees.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import ClientError, ClientSession

from marblemesh.demo.emojivoto.sockets import client

# A visitor casts this many votes over one connection. So some connections live through a change of certificates,
# and others are opened with the new ones.
VOTES_A_VISIT = 10
PROGRESS_SECONDS = 0.5


@dataclass(slots=True)
class Tally:
    """What the bot did so far."""

    votes: int = 0
    failures: int = 0
    errors: list[str] = field(default_factory=list)

    def failed(self, error: str) -> None:
        self.failures += 1
        if len(self.errors) < 10:  # ten tell what is wrong; a bot that fails for ever must not fill the memory
            self.errors.append(error)


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


async def vote(web: ClientSession, choice: str, ballot: str, tally: Tally) -> None:
    try:
        async with web.post("/api/vote", json={"choice": choice, "ballot": ballot}) as reply:
            if reply.status == 200:
                tally.votes += 1
            else:
                tally.failed(f"{reply.status} {await reply.text()}")
    except (ClientError, TimeoutError) as error:
        tally.failed(f"{type(error).__name__} {error}")


async def visits(tally: Tally, count: int, rate: float, stop: asyncio.Event) -> object:
    """Cast `count` votes (0: for ever) in visits of ten, until `stop`. Returns the leaderboard as it is then."""
    async with client("WEB") as web, web.get("/api/list", raise_for_status=True) as reply:
        choices = [entry["shortcode"] for entry in await reply.json()]
    bot, start, said = uuid.uuid4().hex[:8], time.monotonic(), 0.0
    numbers = iter(range(count)) if count else itertools.count()
    for visit in iter(lambda: list(itertools.islice(numbers, VOTES_A_VISIT)), []):
        async with client("WEB") as web:
            for number in visit:
                [choice] = random.choices(choices, weights=range(len(choices), 0, -1))  # noqa: S311 - a matter of taste
                await vote(web, choice, f"emojivoto ballot {bot}-{number:06}", tally)
                if time.monotonic() - said > PROGRESS_SECONDS:
                    said = time.monotonic()
                    say(votes=tally.votes, failures=tally.failures)
                if rate:
                    await wait(stop, start + (number + 1) / rate - time.monotonic())
                if stop.is_set():
                    return await leaderboard(web)
    async with client("WEB") as web:
        return await leaderboard(web)


async def wait(stop: asyncio.Event, seconds: float) -> None:
    """Until it is time for the next vote, or to stop."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            await stop.wait()


async def leaderboard(web: ClientSession) -> object:
    async with web.get("/api/leaderboard", raise_for_status=True) as reply:
        return await reply.json()


async def run(count: int, rate: float) -> int:
    """Vote, fetch the leaderboard, report. Returns the exit status: 0 when nothing failed."""
    stop, tally, start = asyncio.Event(), Tally(), time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    board: object = None
    try:
        board = await visits(tally, count, rate, stop)
    except (ClientError, TimeoutError) as error:
        tally.failed(f"{type(error).__name__} {error}")
    say(
        votes=tally.votes,
        failures=tally.failures,
        errors=tally.errors,
        leaderboard=board,
        seconds=round(time.monotonic() - start, 3),
        result=True,
    )
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(run(int(os.environ.get("VOTES") or "0"), float(os.environ.get("RATE") or "0"))))
