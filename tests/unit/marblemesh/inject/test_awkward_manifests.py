# SPDX-License-Identifier: Apache-2.0
"""Manifests as people have them: each is injected into a valid one and comes back as it was, or is refused clearly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.parse import parse
from marblemesh.inject import stream, yaml_nodes
from marblemesh.inject.errors import Refused
from marblemesh.inject.linkerd_ports import LinkerdMode
from marblemesh.inject.report import Outcome
from marblemesh.inject.settings import Settings
from marblemesh.inject.stream import Result, inject_stream, uninject_stream
from tests.kit.kustomize import judge

DATA = Path(__file__).resolve().parents[3] / "data" / "kubernetes"

REFUSED = {
    "admin-port-taken.yaml": r"spec\.containers\.web\.ports: 15090 is the app's, .* give another one with --admin-addr",
    "alias-bomb.yaml": r"document 1, from line 1: its aliases stand for more than 1000000 values",
    "alias-in-the-way.yaml": r"what would change is alias \*meta: write out what it stands for",
    "container-unknown.yaml": r"label marblerun/marblecontainer: the pod has no container 'app'",
    "directive.yaml": r"line 2: YAML directives \(%\) are not supported",
    "key-twice.yaml": r"key 'image' occurs twice",
    "label-empty.yaml": r"Empty \[marblerun/marbletype\] label, request denied",
    "label-number.yaml": r"marblerun/marbletype is 7, .*put numbers in quotes",
    "literal-at-the-end.yaml": r"document 1, from line 1: cannot be edited as it is written: .* a final line break",
    "merge-key.yaml": r"merge keys \(<<\) are not supported: write out what is merged",
    "nested-deep.yaml": r"line 19: is nested deeper than 64",
    "no-containers.yaml": r"deployment/web \(document 1, from line 1\): spec\.containers: the pod has no containers",
    "no-spec.yaml": r"the pod has no containers",
    "not-yaml.yaml": r"line 19: invalid YAML: did not find expected key",
    "only-sidecars.yaml": r"the pod has only sidecars of another mesh",
    "second-document-unmarked.yaml": r"line 20: invalid YAML: did not find expected <document start>",
    "two-of-one-name.yaml": r"spec\.containers: two are named 'web'",
}
INJECTED = sorted(path.name for path in DATA.iterdir() if path.name not in REFUSED)
# Words for nothing (~, null) are written as {} and [] when something has been in their place.
NOT_BYTE_FOR_BYTE = {"nulls.yaml"}

MANIFEST = parse(
    json.dumps(
        {
            "Packages": {"p": {"SignerID": "87" * 32, "ProductID": 1, "SecurityVersion": 1}},
            "Marbles": {
                name: {"Package": "p", "TLS": ["in"]}
                for name in ("web", "emoji", "voting", "vote-bot", "nightly", "once", "voting-svc", "Web.Front_1")
            },
            "TLS": {"in": {"Incoming": [{"Port": "8080"}, {"Port": "18443"}]}},
        }
    ).encode()
)
SETTINGS = {
    "sgx": Settings(),
    "marblerun": Settings(worker=False),
    "everything": Settings(sgx=None, simulation=True, wrap=True, linkerd=LinkerdMode.OPAQUE, manifest=MANIFEST),
}


def text_of(name: str) -> str:
    return (DATA / name).read_bytes().decode()


def objects(text: str) -> list[Any]:
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def added(before: str, after: str) -> Iterator[str]:
    """The lines of `after` that are not in `before`; every line of `before` has to stand in it, in its order."""
    rest = iter(after.splitlines(keepends=True))
    for line in before.splitlines(keepends=True):
        for other in rest:
            if other == line:
                break
            yield other
        else:
            raise AssertionError(f"this line is gone: {line!r}")
    yield from rest


def without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_empty(item) for name, item in value.items() if item not in (None, {}, [])}
    return [without_empty(item) for item in value] if isinstance(value, list) else value


def test_there_are_thirty_awkward_manifests_and_emojivoto() -> None:
    names = {path.name for path in DATA.iterdir()}
    assert len(names) > 30
    assert names >= {"emojivoto.yaml", *REFUSED}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_injected_is_refused_with_its_place_and_reason(name: str) -> None:
    with pytest.raises(Refused, match=REFUSED[name]):
        inject_stream(text_of(name), SETTINGS["sgx"])


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", INJECTED)
def test_injected_twice_is_injected_once_and_uninject_gives_the_original_back(name: str, settings: Settings) -> None:
    original = text_of(name)
    once = inject_stream(original, settings)
    twice = inject_stream(once.text, settings)
    assert twice.text == once.text
    assert {report.outcome for report in twice.reports} <= {Outcome.UNCHANGED, Outcome.LEFT_ALONE, Outcome.COPIED}
    back = uninject_stream(once.text).text
    if name in NOT_BYTE_FOR_BYTE:
        assert without_empty(objects(back)) == without_empty(objects(original))
    else:
        assert back == original


@pytest.mark.parametrize("name", [name for name in INJECTED if name != "other-kinds.yaml"])
def test_what_comes_out_is_valid_kubernetes(name: str) -> None:
    result = inject_stream(text_of(name), SETTINGS["everything"])
    assert Outcome.INJECTED in {report.outcome for report in result.reports}
    documents = objects(result.text)
    flat = [item for document in documents for item in document.get("items", [document])]
    judge([item for item in flat if item["kind"] != "List"])


@pytest.mark.parametrize(
    "name", ["comments.yaml", "multi-documents.yaml", "crlf.yaml", "four-spaces.yaml", "emojivoto.yaml"]
)
def test_in_block_style_whole_lines_are_added_and_no_other_line_changes(name: str) -> None:
    original = text_of(name)
    lines = list(added(original, inject_stream(original, SETTINGS["sgx"]).text))
    assert lines
    assert ("\r\n" in original) == all(line.endswith("\r\n") for line in lines)


def test_what_is_none_of_our_business_stays_as_it_is_with_a_reason() -> None:
    result = inject_stream(text_of("other-kinds.yaml"), SETTINGS["sgx"])
    assert result.text == text_of("other-kinds.yaml")
    assert [(report.kind, report.outcome) for report in result.reports] == [
        ("Job", Outcome.COPIED),
        ("Secret", Outcome.COPIED),
        ("Widget", Outcome.COPIED),
    ]
    assert result.reports[0].notes[0].text == "no Marble runs in a Job of batch.volcano.sh/v1alpha1"


def many(megabytes: int) -> str:
    """A stream of that size: much of it is one large ConfigMap, as generated manifests are."""
    deployment, config = (
        text_of("comments.yaml"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n  x: |\n",
    )
    documents = [deployment.replace("name:   web ", f"name:   web-{number} ") for number in range(100)]
    size = sum(map(len, documents)) + len(config)
    return "---\n".join([*documents, config + "    0123456789 # text\n" * ((megabytes * 2**20 - size) // 22)])


def test_five_megabytes_are_injected() -> None:
    text = many(5)
    result = inject_stream(text, SETTINGS["marblerun"])
    assert len(text) > 4_900_000
    assert [report.outcome for report in result.reports].count(Outcome.INJECTED) == 100
    assert uninject_stream(result.text).text == text


def test_more_than_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="the input has more than 33554432 characters"):
        inject_stream("#" * (32 * 2**20 + 1), SETTINGS["sgx"])
    monkeypatch.setattr(yaml_nodes, "MAX_NODES", 1000)  # a million takes seconds
    with pytest.raises(Refused, match="line 1: the document has more than 1000 values"):
        inject_stream(f"[{'1,' * 1001}]", SETTINGS["sgx"])
    monkeypatch.setattr(stream, "MAX_NODES", 100)
    with pytest.raises(Refused, match="the input has more than 100 values"):
        inject_stream("---\n[1, 2, 3]\n" * 30, SETTINGS["sgx"])


def test_an_earlier_injection_gives_way_to_the_settings_of_the_last() -> None:
    """Otherwise the Coordinator's address could not be changed by injecting again."""
    original = text_of("comments.yaml")
    again = inject_stream(inject_stream(original, Settings(coordinator="old:2001")).text, Settings(coordinator="new:1"))
    assert again.text == inject_stream(original, Settings(coordinator="new:1")).text
    assert "old:2001" not in again.text


def test_workloads_without_label_are_named_on_the_command_line() -> None:
    text = text_of("pod.yaml").replace("  labels:\n    marblerun/marbletype: Web.Front_1\n", "")
    assert inject_stream(text, SETTINGS["sgx"]).reports[0].notes[0].text == (
        "it has no label marblerun/marbletype (and no --marble web=TYPE was given)"
    )
    result = inject_stream(text, SETTINGS["sgx"], marbles={"web": "front"})
    assert objects(result.text)[0]["metadata"]["labels"] == {"marblerun/marbletype": "front"}
    assert inject_stream(result.text, SETTINGS["sgx"]).text == result.text  # the name is in the label now
    assert uninject_stream(result.text).text == text
    with pytest.raises(Refused, match=r"there is no workload named 'wbe': found web"):
        inject_stream(text, SETTINGS["sgx"], marbles={"wbe": "front"})
    with pytest.raises(Refused, match=r"its label marblerun/marbletype is 'Web.Front_1', and it was named to be 'x'"):
        inject_stream(text_of("pod.yaml"), SETTINGS["sgx"], marbles={"web": "x"})


def test_a_type_that_the_manifest_does_not_have_is_refused() -> None:
    settings = Settings(manifest=MANIFEST)
    with pytest.raises(Refused, match=r"the manifest has no Marble 'shop'; it has Web.Front_1, emoji"):
        inject_stream(text_of("comments.yaml").replace("marbletype: web", "marbletype: shop"), settings)


@pytest.mark.parametrize(
    "record",
    [
        "spec:hostNetwork",
        "metadata:name",
        "spec/containers:web",
        "spec/template/spec:x",
        ":",
        "a",
        "spec:containers/",
    ],
)
def test_a_record_that_names_what_is_never_injected_takes_nothing_out(record: str) -> None:
    text = f"""apiVersion: v1
kind: Pod
metadata: {{name: web, annotations: {{marblemesh/injected: "{record}"}}}}
spec: {{hostNetwork: true, containers: [{{name: web, image: web}}]}}
"""
    with pytest.raises(Refused, match=r"pod/web .*: annotation marblemesh/injected names .* was it edited"):
        uninject_stream(text)


def test_what_was_taken_out_by_hand_is_not_missed() -> None:
    result: Result = inject_stream(text_of("pod.yaml"), SETTINGS["marblerun"])
    document = objects(result.text)[0]
    document["spec"]["containers"][0]["env"].pop()
    del document["spec"]["tolerations"]
    taken = objects(uninject_stream(yaml.safe_dump(document, sort_keys=False)).text)[0]
    assert taken == objects(text_of("pod.yaml"))[0]


def test_what_others_put_in_later_stays() -> None:
    document = objects(inject_stream(text_of("pod.yaml"), SETTINGS["marblerun"]).text)[0]
    document["spec"]["containers"].insert(0, {"name": "other", "image": "other"})
    document["spec"]["containers"][1]["env"].append({"name": "LATER", "value": "1"})
    taken = objects(uninject_stream(yaml.safe_dump(document, sort_keys=False)).text)[0]
    assert [item["name"] for item in taken["spec"]["containers"]] == ["other", "web"]
    assert taken["spec"]["containers"][1]["env"] == [{"name": "LATER", "value": "1"}]
    assert "volumes" not in taken["spec"]
