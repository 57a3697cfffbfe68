# SPDX-License-Identifier: Apache-2.0
"""A whole stream of Kubernetes objects in YAML or JSON: text in, text and report out. All of it is done, or nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from marblemesh.inject.changes import Change, Pointer, difference
from marblemesh.inject.document import Document, describe, split
from marblemesh.inject.errors import Refused
from marblemesh.inject.linkerd_ports import UnknownMarble
from marblemesh.inject.names import MARBLE_TYPE, RECORD, UUID_VOLUME
from marblemesh.inject.pod import Injected, inject_pod, marble_type
from marblemesh.inject.report import Level, Note, ObjectReport, Outcome
from marblemesh.inject.services import MarblePod, MarblePods, inject_service
from marblemesh.inject.settings import Settings
from marblemesh.inject.workloads import KubernetesObject, at

# What 5 MB of small pods become is 24 MB, and can be injected again.
MAX_TEXT = 32 * 1024 * 1024
MAX_NODES = 4_000_000
Progress = Callable[[str], None]
_BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class Result:
    text: str
    reports: tuple[ObjectReport, ...]


@dataclass(frozen=True, slots=True)
class _Work:
    """An object to do. `place`: where its pod is, or the Service."""

    original: Document
    base: Document
    item: KubernetesObject
    place: Pointer


def inject_stream(
    text: str,
    settings: Settings,
    *,
    marbles: Mapping[str, str] | None = None,
    namespace: str | None = None,
    progress: Progress = lambda _: None,
) -> Result:
    """Inject every workload with a Marble type, by its label or by `marbles` (workload name → type), and the Services
    in front of them. An earlier injection is taken out first, so that the settings of the last one count. `progress`
    hears often what is being done.

    Raises Refused, with object and line, if one of them cannot be injected or the text cannot be edited.
    """
    wanted = dict(marbles or {})
    originals = _parse(text, progress)
    bases = [document.uninjected() for document in originals]
    done: dict[int, list[tuple[_Work, Injected | Note]]] = {id(base): [] for base in bases}
    pods: list[MarblePod] = []
    services: list[_Work] = []
    for original, base in zip(originals, bases, strict=True):
        for item in base.objects():
            progress(f"injecting document {base.number}")
            work = _Work(original, base, item, item.place if item.template is None else item.template)
            if item.is_service:
                services.append(work)
                continue
            with _named(work):
                result = _workload(work, settings, wanted, namespace)
            if isinstance(result, tuple):
                pods.append(result[1])
            done[id(base)].append((work, result[0] if isinstance(result, tuple) else result))
    _refuse_unused(wanted, bases)
    found = MarblePods(pods)
    for work in services:
        with _named(work):
            done[id(work.base)].append((work, _service(work, settings, found, namespace)))
    outcome = []
    for original, base in zip(originals, bases, strict=True):
        progress(f"writing document {base.number}")
        outcome.append(_finish(original, base, done[id(base)]))
    return _result(text, outcome)


def uninject_stream(text: str, *, progress: Progress = lambda _: None) -> Result:
    """Take out of every object what `inject_stream` has put in. Raises Refused."""
    outcome = []
    for original in _parse(text, progress):
        progress(f"writing document {original.number}")
        base = original.uninjected()
        reports = []
        for before, after in zip(original.objects(), base.objects(), strict=True):
            reports.append(_taken_out(original, before, after))
        outcome.append((base.text, reports))
    return _result(text, outcome)


def _taken_out(document: Document, before: KubernetesObject, after: KubernetesObject) -> ObjectReport:
    if before.value != after.value:
        note = Note(Level.REMOVED, "what was injected")
        return ObjectReport(document.number, before.kind, before.name, Outcome.UNINJECTED, (note,))
    outcome = Outcome.COPIED if before.template is None and not before.is_service else Outcome.LEFT_ALONE
    note = Note(Level.LEFT, "nothing in it was injected by marblemesh")
    return ObjectReport(document.number, before.kind, before.name, outcome, (note,))


def _parse(text: str, progress: Progress) -> list[Document]:
    if len(text) > MAX_TEXT:
        raise Refused(f"the input has more than {MAX_TEXT} characters")
    documents, values = [], 0
    for document in split(text.removeprefix(_BOM)):
        documents.append(document)
        values += 0 if document.root is None else document.root.size
        if values > MAX_NODES:
            raise Refused(f"the input has more than {MAX_NODES} values")
        progress(f"reading document {document.number}")
    return documents


def _result(text: str, outcome: list[tuple[str, list[ObjectReport]]]) -> Result:
    parts = (_BOM if text.startswith(_BOM) else "", *(part for part, _ in outcome))
    return Result("".join(parts), tuple(report for _, reports in outcome for report in reports))


@contextlib.contextmanager
def _named(work: _Work) -> Iterator[None]:
    """Say of a refusal which object it is about."""
    try:
        yield
    except (Refused, UnknownMarble) as error:
        raise Refused(f"{describe(work.base, work.item)}: {error}") from None


def _workload(
    work: _Work, settings: Settings, marbles: Mapping[str, str], namespace: str | None
) -> tuple[Injected, MarblePod] | Note:
    item = work.item
    if item.template is None:
        return Note(Level.LEFT, f"no Marble runs in a {item.kind} of {item.value.get('apiVersion')}")
    template = at(work.base.value, item.template)
    if not isinstance(template, dict):
        return Note(Level.LEFT, "it has no pod template")
    # A label that was injected is gone from the base, and still says what this is.
    labelled = marble_type(template)
    named = marbles.get(item.name) or marble_type(at(work.original.value, item.template))
    if labelled is not None and named is not None and named != labelled:
        raise Refused(f"its label {MARBLE_TYPE} is {labelled!r}, and it was named to be {named!r}")
    kind = labelled or named
    if kind is None:
        return Note(Level.LEFT, f"it has no label {MARBLE_TYPE} (and no --marble {item.name}=TYPE was given)")
    own = item.namespace or namespace
    injected = inject_pod(template, settings, uuid_volume=UUID_VOLUME, namespace=own, marble=kind)
    return injected, MarblePod.of(injected.template, own, kind, settings)


def _service(work: _Work, settings: Settings, pods: MarblePods, namespace: str | None) -> Injected | Note:
    found = inject_service(work.item.value, work.item.namespace or namespace, pods, settings)
    return found or Note(Level.LEFT, "it selects no Marble of this input")


def _refuse_unused(marbles: Mapping[str, str], documents: list[Document]) -> None:
    names = {item.name for document in documents for item in document.objects() if item.template is not None}
    if unknown := sorted(set(marbles) - names):
        raise Refused(f"there is no workload named {unknown[0]!r}: found {', '.join(sorted(names)) or 'none'}")


def _finish(
    original: Document, base: Document, done: list[tuple[_Work, Injected | Note]]
) -> tuple[str, list[ObjectReport]]:
    changes: list[Change] = []
    expected = base.value
    for work, result in done:
        if isinstance(result, Injected):
            own = list(difference(at(base.value, work.place), result.template, work.place))
            expected = _with(expected, work.place, result.template) if own else expected
            changes += own
    final = base.changed(changes, expected)
    # An earlier injection that would be made again just so keeps its place, also beside what others put in after it.
    unchanged = base is not original and _canonical(final.value) == _canonical(original.value)
    reports = [_report(original, work, result, unchanged=unchanged) for work, result in done]
    return (original.text if unchanged else final.text), reports


def _report(original: Document, work: _Work, result: Injected | Note, *, unchanged: bool) -> ObjectReport:
    item = work.item
    if isinstance(result, Note):
        outcome = Outcome.COPIED if item.template is None and not item.is_service else Outcome.LEFT_ALONE
        return ObjectReport(original.number, item.kind, item.name, outcome, (result,))
    same = unchanged or at(original.value, work.place) == result.template
    notes = tuple(note for note in result.notes if not (same and note.level is Level.ADDED))
    outcome = Outcome.UNCHANGED if same else Outcome.INJECTED
    return ObjectReport(original.number, item.kind, item.name, outcome, notes)


def _canonical(value: Any) -> Any:
    """Without the record, and lists of objects in no order: they are known by their names."""
    if isinstance(value, dict):
        return {name: _canonical(item) for name, item in value.items() if name != RECORD}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return sorted((_canonical(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def _with(root: Any, place: Pointer, new: Any) -> Any:
    """A copy of the value with something else at one place; what is beside the way there is shared."""
    if not place:
        return new
    if isinstance(root, list):
        number = int(place[0])
        return [*root[:number], _with(root[number], place[1:], new), *root[number + 1 :]]
    return {**root, place[0]: _with(root[place[0]], place[1:], new)}
