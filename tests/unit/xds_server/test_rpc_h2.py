# SPDX-License-Identifier: Apache-2.0
"""Our HTTP/2 server against the `h2` library as its client: messages arrive whole, both ways, whatever the windows."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rpc_peer import REQUEST, Pair, Raw, framed, open_stream
from xds_server.rpc_h2 import H2Limits

SIZES = st.integers(0, 200_000) | st.integers(0, 40) | st.sampled_from([16379, 16384, 65530, 65535, 65536])


def bodies(sizes: list[int]) -> list[bytes]:
    return [bytes((number % 251,)) * size for number, size in enumerate(sizes)]


def messages_of(body: bytes) -> list[bytes]:
    found = []
    while body:
        assert body[0] == 0
        length = int.from_bytes(body[1:5], "big")
        found.append(body[5 : 5 + length])
        body = body[5 + length :]
    return found


@given(st.lists(SIZES, max_size=6), st.lists(st.integers(1, 30_000), max_size=8))
def test_a_message_arrives_whole_however_its_client_cuts_it(sizes: list[int], cuts: list[int]) -> None:
    pair = Pair()
    number = pair.request()
    data = b"".join(framed(body) for body in bodies(sizes))
    for cut in cuts:
        pair.send(number, data[:cut])
        data = data[cut:]
        pair.talk()
    pair.send(number, data, end=True)
    pair.talk()
    assert pair.log.messages[number] == bodies(sizes)
    assert pair.log.half == [number]
    assert pair.budget.used == 0


@given(st.binary(min_size=1, max_size=40), st.integers(1, 9))
def test_frames_may_come_in_pieces_of_any_size(body: bytes, step: int) -> None:
    pair = Pair()
    number = pair.request(body)
    data = pair.client.data_to_send()
    for position in range(0, len(data), step):
        pair.server.receive(data[position : position + step], 0.0)
    assert pair.log.messages[number] == [body]


@given(
    st.lists(SIZES, min_size=1, max_size=4),
    st.sampled_from([0, 1, 1000, 65535, 1 << 20]),
    st.sampled_from([16384, 20_000, 1 << 20]),
)
def test_what_is_sent_arrives_whole_however_small_the_windows_of_the_client(
    sizes: list[int], window: int, frame_size: int
) -> None:
    pair = Pair()
    pair.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: frame_size})
    numbers = [pair.request(), pair.request()]
    pair.talk()
    for number in numbers:
        stream = pair.log.streams[number]
        for body in bodies(sizes):
            sent = pair.server.send(stream, body)
            while not sent:
                pair.client.increment_flow_control_window(20_000, number)
                pair.talk()
                sent = stream.pending is None
            pair.talk()
        pair.server.finish(stream, "OK")
    for number in numbers:
        answer = pair.answer(number)
        assert messages_of(answer.body) == bodies(sizes)
        assert (answer.status, answer.ended) == ((b"0", b""), True)
    assert pair.log.over == numbers


def test_a_message_that_waits_for_the_window_is_the_only_one_and_tells_when_it_is_gone() -> None:
    pair = Pair(consume=False)
    number = pair.request()
    pair.talk()
    stream = pair.log.streams[number]
    assert not pair.server.send(stream, bytes(100_000))
    with pytest.raises(RuntimeError, match="still waiting"):
        pair.server.send(stream, b"x")
    pair.talk()
    assert pair.log.ready == []
    pair.client.increment_flow_control_window(100_000)
    pair.client.increment_flow_control_window(100_000, number)
    assert len(pair.answer(number).body) == 100_005
    assert pair.log.ready == [number]


def test_ok_follows_the_message_that_waits_and_a_fault_does_not_wait() -> None:
    pair = Pair(consume=False)
    numbers = [pair.request(), pair.request()]
    pair.talk()
    for number, status in zip(numbers, ("OK", "ABORTED"), strict=True):
        pair.server.send(pair.log.streams[number], bytes(100_000))
        pair.server.finish(pair.log.streams[number], status, "because")
    assert not pair.answer(numbers[0]).ended
    assert pair.answers[numbers[1]].status == (b"10", b"because")
    for number in (None, numbers[0]):
        pair.client.increment_flow_control_window(200_000, number)
    assert pair.answer(numbers[0]).status == (b"0", b"because")


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("no such marble", b"no such marble"),
        ("50% of\nüs", b"50%25 of%0A%C3%BCs"),
        ("x" * 5000, b"x" * 1024),
        ("x" * 1022 + "ü", b"x" * 1022),
    ],
    ids=["plain", "escaped", "cut", "not cut inside an escape"],
)
def test_a_status_text_arrives_escaped_and_short(text: str, wire: bytes) -> None:
    pair = Pair()
    number = pair.request()
    pair.talk()
    pair.server.finish(pair.log.streams[number], "UNAVAILABLE", text)
    assert pair.answer(number).status == (b"14", wire)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (framed(b"abc")[:-1], b"13"),
        (framed(b"abc")[:3], b"13"),
        (b"\1" + framed(b"abc")[1:], b"12"),
        (b"\0\x10\0\0\0", b"8"),
    ],
    ids=["ends inside its message", "ends inside its prefix", "compressed", "256 MB announced"],
)
def test_what_is_no_message_that_we_take_ends_its_stream_with_a_status(data: bytes, status: bytes) -> None:
    pair = Pair()
    number = pair.request()
    pair.send(number, data, end=True)
    assert pair.answer(number).status[0] == status
    assert pair.log.over == [number]
    assert pair.goaway is None


def test_a_message_over_the_limit_is_refused_at_its_first_bytes() -> None:
    pair = Pair(H2Limits(message=1000))
    number = pair.request()
    pair.send(number, framed(bytes(1001))[:5])
    assert pair.answer(number).status == (b"8", b"message of 1001 bytes, at most 1000 are accepted")


def test_large_messages_of_all_connections_share_a_budget() -> None:
    pair = Pair(budget=250_000)
    first, second = pair.request(), pair.request()
    data = framed(bytes(200_000))
    pair.send(first, data[:150_000])
    pair.talk()
    assert pair.budget.used == len(data)
    pair.send(second, data[:65_535])
    assert pair.answer(second).status[0] == b"8"
    pair.send(first, data[150_000:])
    pair.talk()
    assert pair.log.messages[first] == [bytes(200_000)]
    assert pair.budget.used == 0


def test_a_reset_gives_the_budget_back() -> None:
    pair = Pair()
    number = pair.request()
    pair.send(number, framed(bytes(200_000))[:100_000])
    pair.talk()
    assert pair.budget.used
    pair.client.reset_stream(number)
    pair.talk()
    assert pair.budget.used == 0
    assert pair.log.over == [number]


def test_many_unfinished_messages_on_one_connection_are_too_many() -> None:
    pair = Pair(H2Limits(unfinished=100_000))
    numbers = [pair.request() for _ in range(3)]
    for number in numbers:
        pair.send(number, framed(bytes(60_000))[:40_000])
        pair.talk()
    assert pair.log.over == [numbers[2]]
    assert pair.answer(numbers[2]).status[0] == b"8"


def test_who_is_paused_is_held_back_by_its_own_window_and_the_others_go_on() -> None:
    pair = Pair()
    held, free = pair.request(), pair.request()
    pair.talk()
    pair.log.streams[held].paused = True
    sent = 0
    while (room := pair.client.local_flow_control_window(held)) and sent < 1_000_000:
        body = framed(bytes(min(room, 1000) - 5)) if room > 5 else bytes(room)
        pair.client.send_data(held, body)
        sent += len(body)
        pair.talk()
    assert sent == 65_535
    assert pair.log.messages[held] == []
    pair.send(free, framed(b"x") * 20_000)
    pair.talk()
    assert len(pair.log.messages[free]) == 20_000
    pair.server.resume(pair.log.streams[held])
    assert len(pair.log.messages[held]) == 66
    pair.talk()
    assert pair.client.local_flow_control_window(held) > 40_000


def test_the_end_of_a_paused_stream_is_told_behind_its_messages() -> None:
    pair = Pair()
    number = pair.request()
    pair.talk()
    pair.log.streams[number].paused = True
    pair.send(number, framed(b"last"), end=True)
    pair.talk()
    assert (pair.log.messages[number], pair.log.half) == ([], [])
    pair.server.resume(pair.log.streams[number])
    assert (pair.log.messages[number], pair.log.half) == ([b"last"], [number])


def test_a_stream_too_many_is_refused_and_may_come_again() -> None:
    pair = Pair(H2Limits(streams=2))
    numbers = [pair.request() for _ in range(3)]  # the client has not read our settings
    assert pair.answer(numbers[2]).reset == ErrorCodes.REFUSED_STREAM
    pair.server.finish(pair.log.streams[numbers[0]], "OK")
    pair.client.reset_stream(numbers[0])
    again = pair.request(b"x")
    pair.talk()
    assert pair.log.messages[again] == [b"x"]


def test_who_leaves_takes_no_new_stream_and_ends_the_old_ones_in_order() -> None:
    peer = Raw()  # h2's client takes GOAWAY for the end of everything
    peer.feed(open_stream(1))
    peer.server.leave()
    peer.feed(open_stream(3))
    assert (peer.code, peer.reset_code(3)) == (ErrorCodes.NO_ERROR, ErrorCodes.REFUSED_STREAM)
    peer.server.finish(peer.log.streams[1], "OK")
    peer.feed(b"")
    kind, flags, number, _ = peer.frames()[-1]
    assert (kind, flags, number) == (1, 5, 1)


@pytest.mark.parametrize(
    ("changed", "status"), [((b":method", b"GET"), b"405"), ((b"content-type", b"text/html"), b"415")]
)
def test_what_is_no_grpc_request_gets_an_http_status(changed: tuple[bytes, bytes], status: bytes) -> None:
    pair = Pair()
    number = pair.request(fields=[(name, dict([changed]).get(name, value)) for name, value in REQUEST])
    answer = pair.answer(number)
    assert (answer.head, answer.ended) == ({b":status": status}, True)
    assert pair.log.streams == {}


def test_our_header_table_is_empty_and_a_client_that_knows_it_goes_on_without() -> None:
    pair = Pair()
    for _ in range(3):
        number = pair.request(b"x", fields=[*REQUEST, (b"x-custom", b"indexed by the client while it may")])
        pair.talk()
        assert pair.log.messages[number] == [b"x"]
    assert pair.server._headers._decoder is None, "an idle connection keeps no table"


def test_a_client_may_have_no_header_table_either() -> None:
    pair = Pair()
    pair.client.update_settings({SettingCodes.HEADER_TABLE_SIZE: 0})
    for _ in range(2):
        number = pair.request()
        pair.talk()
        pair.server.send(pair.log.streams[number], b"x")
        pair.server.finish(pair.log.streams[number], "OK")
        assert pair.answer(number).status[0] == b"0"


def test_pings_are_answered_and_ours_are_noticed() -> None:
    pair = Pair()
    pair.talk()
    pair.server.ping()
    assert pair.server.pinged
    pair.talk()
    assert not pair.server.pinged
