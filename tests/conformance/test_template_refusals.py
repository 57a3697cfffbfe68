# SPDX-License-Identifier: Apache-2.0
"""Templates that cannot be filled in are found when a manifest is set or updated, or a secret uploaded: by a dry run of
everything, and in words that name the place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.kit.coordinator import Bench, manifest
from tests.kit.deployment import b64
from tests.kit.marble_deployment import MarbleDeployment, deployed, owned, waiting, web
from tests.kit.users import user

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALICE = user("alice")
SECRETS: dict[str, dict[str, object]] = {
    "key": {"Type": "symmetric-key", "Size": 16, "UserDefined": True},
    "plain": {"Type": "plain", "UserDefined": True},
    "cert": {"Type": "cert-ecdsa", "UserDefined": True},
    "made": {"Type": "symmetric-key", "Size": 128, "Shared": True},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    async with waiting(machine, tmp_path_factory.mktemp("refusing")) as made:
        yield made


EMPTY = "tried to parse secret with empty value"
NOT_PLAIN = "only secrets of type plain are allowed to use string encoding for environment variables"
REFUSED: dict[str, tuple[dict[str, dict[str, str]], str]] = {
    "raw in a variable": ({"Env": {"E": "{{ raw .Secrets.key }}"}}, 'function "raw" not defined'),
    "string in a file": ({"Files": {"f": "{{ string .Secrets.plain }}"}}, 'function "string" not defined'),
    "an unknown function": ({"Files": {"f": "{{ nope .Secrets.key }}"}}, 'function "nope" not defined'),
    "an unknown secret": (
        {"Env": {"E": "{{ hex .Secrets.missing }}"}},
        'running manifest template dry run: in Marble web: env variable: E: template: data:1:3: executing "data" at '
        "<hex .Secrets.missing>: error calling hex: secret does not exist",
    ),
    "an unknown secret, previously": (
        {"Env": {"E": "{{ hex .Previous.Secrets.missing }}"}},
        "<hex .Previous.Secrets.missing>: error calling hex: secret does not exist",
    ),
    "pem of a whole secret": (
        {"Files": {"f": "{{ pem .Secrets.cert }}"}},
        "error calling pem: invalid secret type for pem encoding",
    ),
    "hex of a text": ({"Files": {"f": '{{ hex "text" }}'}}, "error calling hex: invalid secret type"),
    "hex of a number": ({"Files": {"f": "{{ hex 7 }}"}}, "error calling hex: invalid secret type"),
    "base64 of a field": (
        {"Env": {"E": "{{ base64 .Secrets.key.Size }}"}},
        "error calling base64: invalid secret type",
    ),
    "string of a key": ({"Env": {"E": "{{ string .Secrets.key }}"}}, f"error calling string: {NOT_PLAIN}"),
    "string of a certificate": ({"Env": {"E": "{{ string .Secrets.cert }}"}}, f"error calling string: {NOT_PLAIN}"),
    "string of a part": ({"Env": {"E": "{{ string .Secrets.plain.Public }}"}}, f"error calling string: {NOT_PLAIN}"),
    "a part that is not there": ({"Files": {"f": "{{ pem .Secrets.key.Cert }}"}}, f"error calling pem: {EMPTY}"),
    "the private key of the root CA": (
        {"Env": {"E": "{{ pem .MarbleRun.RootCA.Private }}"}},
        f"error calling pem: {EMPTY}",
    ),
    "the public key of the root CA": ({"Env": {"E": "{{ hex .MarbleRun.RootCA }}"}}, f"error calling hex: {EMPTY}"),
    "the private key of the Coordinator": (
        {"Env": {"E": "{{ pem .MarbleRun.CoordinatorRoot.Private }}"}},
        f"error calling pem: {EMPTY}",
    ),
    "the private key of the intermediate": (
        {"Env": {"E": "{{ pem .MarbleRun.CoordinatorIntermediate.Private }}"}},
        f"error calling pem: {EMPTY}",
    ),
    "a seal key": ({"Env": {"E": "{{ hex .MarbleRun.SealKey }}"}}, "can't evaluate field SealKey in type "),
    "an unknown member": ({"Env": {"E": "{{ .Nothing }}"}}, "can't evaluate field Nothing in type "),
    "an unknown field": ({"Env": {"E": "{{ .Secrets.key.Nothing }}"}}, "can't evaluate field Nothing in type "),
    "NUL in a variable": (
        {"Env": {"E": '{{ "\\x00" }}'}},
        "running manifest template dry run: in Marble web: env variable: E: content contains null bytes",
    ),
    "an action that does not end": ({"Files": {"f": "{{ hex .Secrets.key"}}, "unclosed action"),
    "an if that does not end": ({"Files": {"f": "{{ if 1 }}"}}, "unexpected EOF"),
    "an end too many": ({"Files": {"f": "{{ end }}"}}, "unexpected {{end}}"),
    "an undefined variable": ({"Files": {"f": "{{ $x }}"}}, 'undefined variable "$x"'),
    "an index out of range": (
        {"Env": {"E": "{{ index .Secrets.made.Public 16 }}"}},
        "error calling index: reflect: slice index out of range",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_template_that_cannot_be_filled_in_is_refused_with_the_manifest(
    refusing: MarbleDeployment, name: str
) -> None:
    parameters, text = REFUSED[name]
    message = await refusing.manifest_refused(manifest(Secrets=SECRETS, Marbles=web(**parameters)))
    assert message.startswith("running manifest template dry run: in Marble web: ")
    assert text in message


@pytest.mark.parametrize(
    ("action", "word"),
    [
        ('{{ define "x" }}{{ end }}', "define"),
        ('{{ template "x" . }}', "template"),
        ('{{ block "x" . }}{{ end }}', "block"),
        ("{{ call .Secrets }}", "call"),
    ],
)
async def test_what_go_has_and_we_have_not_is_refused_by_name_with_line_and_column(
    refusing: MarbleDeployment, action: str, word: str
) -> None:
    message = await refusing.manifest_refused(manifest(Marbles=web(Files={"/etc/f": f"one line\n {action}"})))
    assert message == (
        f'checking manifest: template: data:2:4: "{word}" is not supported in manifests '
        "(at Marbles.web.Parameters.Files./etc/f)"
    )


# --- the dry run


async def test_every_file_and_variable_of_every_marble_is_tried(refusing: MarbleDeployment) -> None:
    good = {"Files": {"f": "{{ 1 }}"}, "Env": {"E": "{{ 2 }}"}}
    for member, where in (("Files", "file bad"), ("Env", "env variable: bad")):
        bad = good | {member: {**good[member], "bad": "{{ hex .Secrets.missing }}"}}
        marbles = web(**good) | {"second": {"Package": "app", "Parameters": bad}}
        message = await refusing.manifest_refused(manifest(Marbles=marbles))
        assert message.startswith(f"running manifest template dry run: in Marble second: {where}: template: data:1:3:")


async def test_users_secrets_and_predefined_ones_are_the_byte_0x41_meanwhile(
    refusing: MarbleDeployment, machine: Path, tmp_path: Path
) -> None:
    fail = "{{ hex .Secrets.missing }}"
    values = [".Secrets.plain", ".Secrets.cert.Cert", ".Secrets.cert.Private", ".MarbleRun.RootCA.Cert"]
    values += [".MarbleRun.MarbleCert.Private", ".MarbleRun.MarbleCert", ".MarbleRun.CoordinatorRoot.Cert"]
    for value in values:
        other = web(Files={"f": f'{{{{ if eq (hex {value}) "41" }}}}{fail}{{{{ end }}}}'})
        assert "secret does not exist" in await refusing.manifest_refused(manifest(Secrets=SECRETS, Marbles=other))
    async with deployed(Bench.make(machine), tmp_path) as town:
        files = {value: f'{{{{ if ne (hex {value}) "41" }}}}{fail}{{{{ end }}}}' for value in values}
        await town.set_manifest(manifest(Secrets=SECRETS, Marbles=web(Files=files)))


async def test_generated_secrets_are_the_real_ones(machine: Path, tmp_path: Path) -> None:
    text = "{{ if ne (len .Secrets.made.Public) 16 }}{{ hex .Secrets.missing }}{{ end }}"
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(manifest(Secrets=SECRETS, Marbles=web(Files={"f": text})))


async def test_an_upload_is_tried_with_its_new_values(machine: Path, tmp_path: Path) -> None:
    raw = owned(
        Secrets={"z": {"Type": "plain", "UserDefined": True}}, Marbles=web(Env={"E": "{{ string .Secrets.z }}"})
    )
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(raw)
        answer = await town.post("/api/v2/secrets", {"secrets": {"z": {"Key": b64(b"a\0b")}}}, ALICE)
        assert (answer.status, answer.message) == (
            500,
            "running manifest template dry run: in Marble web: env variable: E: template: data:1:3: "
            'executing "data" at <string .Secrets.z>: error calling string: secret contains null bytes',
        )
        assert (await town.get("/secrets?s=z", ALICE)).data["z"]["Private"] is None


async def test_a_whole_update_is_tried_too(machine: Path, tmp_path: Path) -> None:
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(owned())
        body = {"manifest": b64(owned(Marbles=web(Files={"f": "{{ hex .Secrets.missing }}"})))}
        answer = await town.post("/api/v2/update", body, ALICE)
        assert answer.status == 500
        assert answer.message.startswith(
            "running manifest template dry run: in Marble web: file f: template: data:1:3:"
        )
        assert (await town.activate()).argv == ["./web"]
