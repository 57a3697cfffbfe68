# SPDX-License-Identifier: Apache-2.0
"""The trial of `--once`: votes go through while certificates rotate and strangers knock; then everything is checked."""

from __future__ import annotations

import asyncio
import signal

from marblemesh.demo.errors import CheckFailedError, DemoError
from marblemesh.demo.observe import Certificate, certificate_of, envoy_certificate_updates
from marblemesh.demo.progress import last_line
from marblemesh.demo.refusal import Probe, no_certificate_probe, plaintext_probe
from marblemesh.demo.result import MarbleReport, Result, parse_vote_report
from marblemesh.demo.scrape import get_metrics
from marblemesh.demo.steps.start import STEP_SECONDS, start_voting
from marblemesh.demo.steps.world import Wish, World
from marblemesh.demo.topology import HOST, MARBLES

# Between two rotations some votes shall pass with the one certificate.
ROTATION_PAUSE = 0.3
# A vote that hangs fails by itself after 10 s; a bot that is not done long after that is stuck.
SECONDS_PER_VOTE = 0.5


async def trial(world: World, wish: Wish, result: Result) -> None:
    """Fill `result`. Raises DemoError, CheckFailedError among them, for anything that is not as it must be."""
    result.marbles = tuple([await _report(world, marble) for marble in ("emoji", "voting", "web")])
    before = await _envoy_updates(world)
    world.processes.may_end("vote-bot")
    await start_voting(world, wish)
    result.marbles += (await _report(world, "vote-bot"),)
    await _until_voted(world, wish, result)
    result.envoy_certificate_updates = await _envoy_updates(world) - before
    report = parse_vote_report(last_line(world.processes["vote-bot"].out))
    result.add_votes(report)
    report.check(wish.votes)
    for probe in result.refusals:
        if not probe.refused:
            raise CheckFailedError(f"port {probe.port} answered a stranger ({probe.stranger}) with {probe.answer}")
    world.say(f"{report.total} votes counted, {result.rotations} rotations meanwhile, no failure")


async def _until_voted(world: World, wish: Wish, result: Result) -> None:
    """vote-bot votes; meanwhile certificates rotate, strangers knock, and no process may end."""
    bot, voted = world.processes["vote-bot"], asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(world.processes.watch())
            rotation = group.create_task(_rotate_until(voted, world, result))
            strangers = group.create_task(_strangers(world))
            try:
                async with asyncio.timeout(STEP_SECONDS + wish.votes * SECONDS_PER_VOTE):
                    await bot.wait()
            except TimeoutError:
                raise DemoError("vote-bot does not come to an end", bot.tail()) from None
            voted.set()
            await rotation
            result.refusals = await strangers
            watch.cancel()
    except* DemoError as failed:
        raise _first(failed) from None


def _first(group: BaseExceptionGroup[DemoError]) -> DemoError:
    """One error is the cause; the others are what it led to."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def _report(world: World, marble: str) -> MarbleReport:
    held = await certificate_of(world, marble)
    if held is None:
        raise CheckFailedError(f"{marble}'s worker shows no attested certificate")
    return MarbleReport(
        marble,
        held.uuid,
        held.spiffe_id,
        held.measurement,
        held.simulated,
        held.not_before.isoformat(),
        held.not_after.isoformat(),
    )


async def _rotate_until(voted: asyncio.Event, world: World, result: Result) -> None:
    """Rotate, at least once, while votes pass; `result.rotations` counts what every Marble has taken."""
    while not (voted.is_set() and result.rotations):
        await _rotate(world)
        result.rotations += 1
        await asyncio.sleep(ROTATION_PAUSE)


async def _rotate(world: World) -> None:
    """The Coordinator renews everybody (SIGHUP); wait until every worker, and web's Envoy, has the new certificate."""
    old, updates = await _certificates(world), await _envoy_updates(world)
    world.processes["coordinator"].signal(signal.SIGHUP)

    async def taken() -> bool:
        new = await _certificates(world)
        changed = all(new[m] and new[m] != old[m] for m in MARBLES if world.processes[m].status is None)
        return changed and await _envoy_updates(world) > updates

    await world.processes.until(taken, "coordinator: not every Marble took its new certificate", STEP_SECONDS)


async def _certificates(world: World) -> dict[str, Certificate | None]:
    found = await asyncio.gather(*(certificate_of(world, marble) for marble in MARBLES))
    return dict(zip(MARBLES, found, strict=True))


async def _envoy_updates(world: World) -> int:
    return envoy_certificate_updates(await get_metrics(world.http, world.metrics_urls()["envoy-web"]))


async def _strangers(world: World) -> tuple[Probe, ...]:
    """At every door of the mesh one who speaks plaintext, and one who has no certificate."""
    ports = world.topology.ports.mesh().values()
    probes = [probe(HOST, port) for port in ports for probe in (plaintext_probe, no_certificate_probe)]
    return tuple(await asyncio.gather(*probes))
