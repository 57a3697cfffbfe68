# SPDX-License-Identifier: Apache-2.0
"""What the webhook answers to an AdmissionReview, and to what is none."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marblemesh.inject.pod import inject_pod
from marblemesh.inject.settings import Settings
from marblemesh.injector.review import MAX_BODY, Verdict, review
from tests.kit.json_patch import apply
from tests.kit.kustomize import judge
from tests.kit.pods import PODS, UID, Json, patch_of, pod, review_of

SETTINGS = Settings()


def answered(body: bytes) -> tuple[Verdict, Json]:
    answer = review(body, SETTINGS)
    assert answer.status is HTTPStatus.OK
    document: Json = json.loads(answer.body)
    assert document["kind"] == "AdmissionReview"
    assert document["response"]["uid"] == UID
    return answer.verdict, document


def response_to(item: object, **request: Any) -> Json:
    found: Json = answered(review_of(item, **request))[1]["response"]
    return found


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_labelled_pod_is_patched_in_the_version_of_the_request(version: str) -> None:
    verdict, document = answered(review_of(pod(), version=version))
    assert (verdict, document["apiVersion"]) == (Verdict.PATCHED, f"admission.k8s.io/{version}")
    assert document["response"]["allowed"] is True
    patched = apply(pod(), patch_of(document["response"]))
    judge([patched])
    variables = {item["name"]: item["value"] for item in patched["spec"]["containers"][0]["env"]}
    assert variables["EDG_MARBLE_TYPE"] == "web"
    assert variables["EDG_MARBLE_DNS_NAMES"] == "web,web.shop,web.shop.svc.cluster.local"
    assert variables["EDG_MARBLE_UUID_FILE"] == "/web-uid/uuid-file"
    assert variables["EDG_MARBLE_COORDINATOR_ADDR"] == "coordinator-mesh-api.marblerun:2001"
    assert patched["spec"]["volumes"][0] == {
        "name": f"uuid-file-{UID}",
        "downwardAPI": {"items": [{"path": "uuid-file", "fieldRef": {"fieldPath": "metadata.uid"}}]},
    }


def test_the_patch_gives_what_the_command_line_gives() -> None:
    """One code: a pod injected by file and one injected by webhook differ in the volume's name alone."""
    expected = inject_pod(pod(), SETTINGS, uuid_volume=f"uuid-file-{UID}", namespace="shop").template
    assert apply(pod(), patch_of(response_to(pod()))) == expected


def test_a_pod_that_the_command_line_has_injected_stays_as_it_is() -> None:
    done = inject_pod(pod(), Settings(coordinator="mine:2001"), uuid_volume="uuid-file", namespace="shop").template
    verdict, document = answered(review_of(done))
    assert (verdict, patch_of(document["response"])) == (Verdict.PASSED, [])


def test_called_again_with_another_uid_it_adds_nothing() -> None:
    """Kubernetes calls a webhook again when a later one has changed the pod."""
    once = apply(pod(), patch_of(response_to(pod())))
    body = review_of(once).replace(UID.encode(), b"7f3c1e1a-0000-0000-0000-42010a800002", 1)
    assert review(body, SETTINGS).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "Missing [marblerun/marbletype] label, request denied"),
        ({"app": "web"}, "Missing [marblerun/marbletype] label, request denied"),
        ({"marblerun/marbletype": ""}, "Empty [marblerun/marbletype] label, request denied"),
    ],
)
def test_a_pod_without_a_type_is_denied_in_marblerun_s_words(labels: Json, message: str) -> None:
    response = response_to(pod(labels=labels))
    assert response == {"uid": UID, "allowed": False, "status": {"code": 403, "message": message}}


def test_a_pod_that_cannot_be_a_marble_is_denied_with_the_reason() -> None:
    labels = {"marblerun/marbletype": "web", "marblerun/marblecontainer": "app"}
    verdict, document = answered(review_of(pod(labels=labels)))
    assert verdict is Verdict.DENIED
    assert document["response"]["status"]["message"] == (
        "label marblerun/marblecontainer: the pod has no container 'app'"
    )


def test_what_may_not_work_is_shown_to_whoever_made_the_pod() -> None:
    response = response_to(pod(terminationGracePeriodSeconds=5))
    assert response["warnings"] == [
        "marblemesh: terminationGracePeriodSeconds 5: the worker takes up to 20 s to end in order"
    ]


@pytest.mark.parametrize(
    "request_",
    [
        {"operation": "UPDATE"},
        {"operation": "DELETE", "object": None},
        {"subResource": "ephemeralcontainers"},
        {"resource": {"group": "", "version": "v1", "resource": "services"}},
        {"resource": {"group": "apps", "version": "v1", "resource": "deployments"}},
    ],
)
def test_what_is_no_new_pod_passes_as_it_is(request_: Json) -> None:
    verdict, document = answered(review_of(pod(), **request_))
    assert (verdict, document["response"]) == (Verdict.PASSED, {"uid": UID, "allowed": True})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"a": NaN}',
        b"9" * 5000,
        b"[" * 100_000,
        b'{"a":' * 70 + b"1" + b"}" * 70,
        b" " * (MAX_BODY + 1),
        review_of(pod()).replace(b"AdmissionReview", b"AdmissionRequest"),
        review_of(pod()).replace(b"admission.k8s.io/v1", b"admission.k8s.io/v2"),
        review_of(pod(), uid=7),
        review_of(pod(), uid="a" * 64),
        review_of(pod(), uid="../x"),
        review_of(None),
        review_of([]),
        json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": None}).encode(),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_review_gets_one_answer_that_tells_nothing(body: bytes) -> None:
    answer = review(body, SETTINGS)
    assert (answer.verdict, answer.status) == (Verdict.MALFORMED, HTTPStatus.BAD_REQUEST)
    assert answer.body == b"malformed AdmissionReview\n"
    assert answer.reason


@settings(max_examples=100, deadline=None)
@given(PODS)
def test_for_every_pod_the_patch_gives_what_the_injection_gives_or_it_is_denied(item: Json) -> None:
    verdict, document = answered(review_of(item))
    response = document["response"]
    if verdict is Verdict.DENIED:
        assert response["status"]["message"].isprintable()
        return
    expected = inject_pod(item, SETTINGS, uuid_volume=f"uuid-file-{UID}", namespace="shop").template
    assert apply(item, patch_of(response)) == expected


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_it_answers_whatever_the_bytes(body: bytes) -> None:
    assert review(body, SETTINGS).verdict is Verdict.MALFORMED
