# SPDX-License-Identifier: Apache-2.0
"""Of several addresses the first that connects is used; one that is slow costs a quarter of a second, not the timeout.

A delay of an hour shows that nothing waited for it; a short one, that the next address did not wait for the first.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time

import pytest

from enclave_proxy.eyeballs import ATTEMPT_DELAY, Connected, race
from enclave_proxy.relay_config import TcpAddress
from tests.kit.dead_ports import listening, need_ipv6, refusing, silent

HOUR = 3600.0
SHORT = 0.03
LONG = 5.0


class Try:
    """One race, and all that it did."""

    def __init__(self, *addresses: TcpAddress) -> None:
        self.waiting = list(addresses)
        self.failed: dict[TcpAddress, OSError] = {}
        self.sockets: list[socket.socket] = []

    def next(self) -> TcpAddress | None:
        return self.waiting.pop(0) if self.waiting else None

    def open(self, family: socket.AddressFamily) -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.sockets.append(made)
        return made

    async def race(self, delay: float = HOUR, within: float = LONG) -> Connected | None:
        return await race(self.next, self.failed.__setitem__, self.open, within=within, delay=delay)

    async def winner(self, delay: float = HOUR, within: float = LONG) -> TcpAddress | None:
        """Whoever wins; every other socket has been closed, and the one that is given out is connected."""
        connected = await self.race(delay, within)
        open_ones = [made for made in self.sockets if made.fileno() != -1]
        if connected is None:
            assert open_ones == []
            return None
        address, connection = connected
        with connection:
            assert open_ones == [connection]
            assert connection.getpeername()[:2] == (address.host, address.port)
        return address


def test_the_delay_is_what_the_rfc_recommends() -> None:
    assert ATTEMPT_DELAY == 0.25


async def test_the_first_address_is_used_if_it_answers() -> None:
    with listening() as one, listening() as other:
        attempt = Try(one, other)
        assert await attempt.winner() == one
        assert (attempt.waiting, attempt.failed) == ([other], {})


async def test_a_refusal_moves_on_at_once() -> None:
    with refusing() as one, refusing() as two, listening() as three:
        attempt = Try(one, two, three)
        assert await attempt.winner() == three
        assert [error.errno for error in attempt.failed.values()] == [errno.ECONNREFUSED] * 2


async def test_silence_moves_on_after_the_delay_and_counts_against_who_was_silent() -> None:
    with silent() as one, listening() as two:
        attempt = Try(one, two)
        assert await attempt.winner(SHORT) == two
        assert list(attempt.failed) == [one]
        assert isinstance(attempt.failed[one], TimeoutError)


async def test_refusals_and_silences_are_passed_over_in_any_mixture() -> None:
    with refusing() as one, silent() as two, refusing() as three, silent() as four, listening() as five:
        attempt = Try(one, two, three, four, five)
        assert await attempt.winner(SHORT) == five
        assert set(attempt.failed) == {one, two, three, four}


async def test_who_is_slow_may_still_win_and_who_was_tried_later_is_not_blamed_for_that() -> None:
    """The first address begins to accept after the second was tried, which never does."""
    with silent() as two, socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        late.listen(0)
        first = socket.create_connection(late.getsockname())
        one = TcpAddress("127.0.0.1", late.getsockname()[1])
        attempt = Try(one, two)
        async with asyncio.TaskGroup() as group:
            winner = group.create_task(attempt.winner(SHORT))
            while len(attempt.sockets) < 2:
                await asyncio.sleep(0.01)
            late.accept()[0].close()  # now there is room, and the kernel asks again after a second
        first.close()
        assert winner.result() == one
        assert attempt.failed == {}


async def test_when_all_have_failed_there_is_no_winner() -> None:
    with refusing() as one, refusing() as two:
        attempt = Try(one, two)
        assert await attempt.winner() is None
        assert set(attempt.failed) == {one, two}


async def test_without_any_address_there_is_no_winner() -> None:
    assert await Try().winner() is None


async def test_all_of_it_together_takes_a_bounded_time() -> None:
    with silent() as one, silent() as two:
        attempt = Try(one, two)
        assert await attempt.winner(SHORT, within=0.2) is None
        assert {address: type(error) for address, error in attempt.failed.items()} == {
            one: TimeoutError,
            two: TimeoutError,
        }


async def test_who_is_cancelled_leaves_nothing_open_and_blames_nobody() -> None:
    with silent() as one, silent() as two:
        attempt = Try(one, two)
        running = asyncio.get_running_loop().create_task(attempt.race(SHORT))
        while len(attempt.sockets) < 2:
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait((running,))
        assert [made.fileno() for made in attempt.sockets] == [-1, -1]
        assert attempt.failed == {}


async def test_who_is_cancelled_in_the_moment_of_success_leaves_nothing_open_either() -> None:
    with silent() as one, listening() as two:
        attempt = Try(one, two)

        def cancel(address: TcpAddress, error: OSError) -> None:
            running.cancel()  # being told that the first was overtaken means that the second has just won

        running = asyncio.get_running_loop().create_task(
            race(attempt.next, cancel, attempt.open, within=LONG, delay=SHORT)
        )
        await asyncio.wait((running,))
        assert running.cancelled()
        assert [made.fileno() for made in attempt.sockets] == [-1, -1]


async def test_a_process_that_was_busy_does_not_take_its_own_slowness_for_the_peers() -> None:
    with listening() as one, listening() as two:
        attempt = Try(one, two)
        running = asyncio.get_running_loop().create_task(attempt.winner(SHORT))
        while not attempt.sockets:
            await asyncio.sleep(0)
        time.sleep(3 * SHORT)  # noqa: ASYNC251 - the loop is held up, the kernel is not
        assert await running == one
        assert (attempt.waiting, attempt.failed) == ([two], {})


async def test_a_name_is_never_looked_up_by_connecting() -> None:
    with listening() as real:
        attempt = Try(TcpAddress("localhost", real.port))
        assert await attempt.winner() is None
        assert attempt.sockets == []


async def test_want_of_descriptors_is_told_and_moves_on() -> None:
    attempt = Try(TcpAddress("127.0.0.1", 1))

    def none_left(_: socket.AddressFamily) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    assert await race(attempt.next, attempt.failed.__setitem__, none_left, within=LONG) is None
    assert [error.errno for error in attempt.failed.values()] == [errno.EMFILE]


@pytest.mark.parametrize("hosts", [("::1", "127.0.0.1"), ("127.0.0.1", "::1")])
async def test_a_family_on_which_nobody_answers_gives_way_to_the_other(hosts: tuple[str, str]) -> None:
    need_ipv6()
    with refusing(hosts[0]) as one, listening(hosts[1]) as two:
        attempt = Try(one, two)
        assert await attempt.winner() == two
        assert list(attempt.failed) == [one]
