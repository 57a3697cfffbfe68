# SPDX-License-Identifier: Apache-2.0
"""What holds for every pod, also for what is none: injected or refused, the same twice, and the patch says the same."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st

from marblemesh.inject.changes import Change, difference
from marblemesh.inject.errors import Refused
from marblemesh.inject.pod import inject_pod
from marblemesh.inject.record import removals
from marblemesh.inject.settings import Advertise, Settings
from marblemesh.inject.stream import inject_stream, uninject_stream
from tests.kit.json_patch import apply
from tests.kit.pods import ANYTHING, PODS, Json

SETTINGS = st.sampled_from(
    [
        Settings(),
        Settings(worker=False, admin=None),
        Settings(sgx=None, wrap=True, simulation=True, advertise=Advertise.POD_IP),
    ]
)


@settings(max_examples=150, deadline=None)
@given(PODS, SETTINGS)
def test_every_pod_is_injected_or_refused_and_injecting_again_adds_nothing(pod: Json, chosen: Settings) -> None:
    before = copy.deepcopy(pod)
    try:
        once, refusal = inject_pod(pod, chosen, uuid_volume="uuid-file").template, ""
    except Refused as error:
        once, refusal = None, str(error)
    assert pod == before
    if once is None:
        event("refused")
        assert refusal.isprintable()
        return
    event("injected")
    assert inject_pod(once, chosen, uuid_volume="another").template == once
    patch = [change.as_json() for change in difference(pod, once)]
    assert apply(pod, json.loads(json.dumps(patch))) == json.loads(json.dumps(once))
    assert {operation["op"] for operation in patch} <= {"add", "replace"}
    assert removals(once) or once == pod


@settings(max_examples=100, deadline=None)
@given(ANYTHING, ANYTHING)
def test_the_difference_of_two_values_makes_the_second_of_the_first(before: Any, after: Any) -> None:
    patched = apply(before, [change.as_json() for change in difference(before, after)])
    assert json.dumps(patched, sort_keys=True) == json.dumps(after, sort_keys=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=2), max_size=4), st.lists(st.text(max_size=2), max_size=4))
def test_what_is_put_before_or_behind_a_list_moves_nothing_of_it(present: list[str], more: list[str]) -> None:
    assert all(change.op == "add" for change in difference(present, more + present))
    assert list(difference(present, present + more)) == [
        Change("add", (len(present) + number,), item) for number, item in enumerate(more)
    ] or (present and (present + more)[len(more) :] == present)


def as_json(indent: int | None) -> Any:
    return lambda value: json.dumps(value, indent=indent, ensure_ascii=False)


def as_yaml(**style: Any) -> Any:
    return lambda value: yaml.safe_dump(value, sort_keys=False, **style)


STYLES = st.sampled_from(
    [
        as_json(None),
        as_json(4),
        as_yaml(),
        as_yaml(indent=4, explicit_start=True, line_break="\r\n"),
        as_yaml(default_flow_style=None, width=20, allow_unicode=True),
        as_yaml(default_flow_style=True, width=40),
        as_yaml(default_style='"', width=30),
    ]
)


@settings(max_examples=200, deadline=None)
@given(PODS, SETTINGS, STYLES)
def test_every_pod_as_text_comes_back_from_injection_as_it_was(pod: Json, chosen: Settings, style: Any) -> None:
    text = style({"apiVersion": "v1", "kind": "Pod", **pod})
    try:
        once = inject_stream(text, chosen).text
        twice = inject_stream(once, chosen).text
        back = uninject_stream(once).text
    except Refused as error:
        event("refused")
        if "edited as it is written" in str(error) or "overlap" in str(error):
            raise AssertionError("what a library writes can be edited") from error
        return
    event("unchanged" if once == text else "injected")
    assert twice == once
    if "null" not in text and "marblemesh/injected" not in text:
        assert back == text
