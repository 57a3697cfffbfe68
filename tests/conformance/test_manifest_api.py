# SPDX-License-Identifier: Apache-2.0
"""Setting and reading the manifest, the states around it, users' secrets, counters and signed quotes."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from sds.attestation.report_data import coordinator_report_data
from sds.attestation.simulated import SimulatedEnclave
from tests.kit.coordinator import Bench, manifest
from tests.kit.users import public_pem, recovery_key, user
from xds_server.errors import (
    CoordinatorError,
    FeatureDisabled,
    ManifestRefused,
    NotAllowed,
    NotSet,
    QuoteNotVerified,
    Unauthorized,
    WrongState,
)
from xds_server.secret_definitions import SecretsRefused

OAEP = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
UUID = "0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2d3"


def web(**parameters: object) -> dict[str, object]:
    return {"web": {"Package": "app", "Parameters": parameters}}


def with_users(**members: object) -> bytes:
    """alice may read `shared` and `api` and write `api`; bob has no roles."""
    document = {
        "Secrets": {
            "shared": {"Type": "symmetric-key", "Size": 128, "Shared": True},
            "own": {"Type": "symmetric-key", "Size": 128},
            "api": {"Type": "plain", "UserDefined": True},
            "other": {"Type": "plain", "UserDefined": True},
        },
        "Users": {
            "alice": {"Certificate": user("alice").certificate.decode(), "Roles": ["reader", "writer"]},
            "bob": {"Certificate": user("bob").certificate.decode(), "Roles": []},
        },
        "Roles": {
            "reader": {"ResourceType": "Secrets", "ResourceNames": ["shared", "api"], "Actions": ["readsecret"]},
            "writer": {"ResourceType": "Secrets", "ResourceNames": ["api"], "Actions": ["WriteSecret"]},
        },
    }
    return manifest(**(document | members))


ALICE, BOB = [user("alice").der], [user("bob").der]


# --- manifest and states (2.4, 3.3)


async def test_the_root_key_signs_the_sha256_of_the_raw_manifest(bench: Bench) -> None:
    with pytest.raises(NotSet, match=r"^requested value not set$"):
        bench.coordinator.manifest()
    raw = manifest()
    assert await bench.coordinator.set_manifest(raw) == {}
    answer = bench.coordinator.manifest()
    assert (answer.raw, answer.fingerprint) == (raw, hashlib.sha256(raw).hexdigest())
    key = bench.coordinator.ca.root.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(answer.signature, raw, ec.ECDSA(SHA256()))
    with pytest.raises(WrongState, match=r"^server is not in expected state$"):
        await bench.coordinator.set_manifest(raw)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"Packages": {}}, "^checking manifest: "),
        (
            {"Secrets": {"p": {"Type": "plain"}}},
            "^(checking manifest|generating secrets from manifest): .*secret p is invalid: unsupported secret of type",
        ),
        (
            {"Marbles": web(Env={"A": "{{ hex .Secrets.missing }}"})},
            '^running manifest template dry run: in Marble web: env variable: A: template: data:1:3: executing "data" '
            "at <hex .Secrets.missing>: error calling hex: secret does not exist",
        ),
        (
            {"Marbles": web(Files={"/f": "{{ string .Secrets.missing }}"})},
            '^running manifest template dry run: in Marble web: file /f: .*function "string" not defined',
        ),
        ({"RecoveryKeys": {"k": "no key"}}, "^generating recovery encryption key: "),
    ],
)
async def test_a_refusal_begins_with_the_step_that_found_out(
    bench: Bench, members: dict[str, object], text: str
) -> None:
    with pytest.raises(ManifestRefused, match=text):
        await bench.coordinator.set_manifest(manifest(**members))
    assert bench.coordinator.status().code == 2
    assert not bench.store.committed


async def test_a_manifest_that_cannot_be_sealed_is_not_in_force(bench: Bench) -> None:
    bench.store.failing = True
    with pytest.raises(ManifestRefused, match=r"^sealing state: disk full"):
        await bench.coordinator.set_manifest(manifest())
    assert bench.coordinator.status().code == 2
    bench.store.failing = False
    await bench.coordinator.set_manifest(manifest())
    assert bench.coordinator.status().code == 3


async def test_each_recovery_keys_owner_gets_a_share_by_oaep(bench: Bench) -> None:
    owner = recovery_key()
    keys = {"owner": public_pem(owner.public_key()).decode()}
    answer = await bench.coordinator.set_manifest(manifest(RecoveryKeys=keys))
    assert list(answer) == ["owner"]
    assert owner.decrypt(answer["owner"], OAEP) == bench.store.keys[-1]


async def test_the_update_log_begins_with_the_manifest(bench: Bench) -> None:
    with pytest.raises(NotSet):
        bench.coordinator.update_log()
    await bench.coordinator.set_manifest(manifest())
    (entry,) = bench.coordinator.update_log()
    assert list(json.loads(entry)) == ["time", "update"]
    assert json.loads(entry)["update"] == "Initial manifest set"
    assert json.loads(entry)["time"][-5:-4] == "."
    assert json.loads(entry)["time"].endswith("Z")


# --- users and secrets (3.8, 6.6, 3.13)


async def test_a_user_reads_the_secrets_of_the_roles_together_all_or_none(bench: Bench) -> None:
    await bench.coordinator.set_manifest(with_users())
    secrets = bench.coordinator.secrets_get(["shared", "api"], ALICE)
    assert len(secrets["shared"].public) == 16
    assert secrets["api"].public == b""
    with pytest.raises(
        NotAllowed, match=r"^user alice is not allowed to read one or more secrets of: \[shared other\]$"
    ):
        bench.coordinator.secrets_get(["shared", "other"], ALICE)
    with pytest.raises(NotAllowed, match=r"^user bob is not allowed to read one or more secrets of: \[shared\]$"):
        bench.coordinator.secrets_get(["shared"], BOB)


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param([], id="no certificate"),
        pytest.param([user("mallory").der], id="a stranger"),
        pytest.param([user("mallory").der, user("alice").der], id="a user's certificate behind a stranger's"),
    ],
)
async def test_who_is_no_user_learns_nothing_else(bench: Bench, chain: list[bytes]) -> None:
    with pytest.raises(Unauthorized):
        bench.coordinator.check_user(ALICE)  # nobody is a user before a manifest
    await bench.coordinator.set_manifest(with_users())
    bench.coordinator.check_user(ALICE)
    text = "^unauthorized user: client certificate did not match any MarbleRun users$"
    with pytest.raises(Unauthorized, match=text):
        bench.coordinator.secrets_get(["shared"], chain)
    with pytest.raises(Unauthorized, match=text):
        await bench.coordinator.secrets_set({"api": {"Key": "AA=="}}, chain)


async def test_a_user_sets_a_secret_and_the_log_names_it(bench: Bench) -> None:
    await bench.coordinator.set_manifest(with_users())
    await bench.coordinator.secrets_set({"api": {"Key": base64.b64encode(b"value").decode()}}, ALICE)
    assert bench.coordinator.secrets_get(["api"], ALICE)["api"].public == b"value"
    entry = json.loads(bench.coordinator.update_log()[-1])
    assert list(entry) == ["time", "update", "user", "secret", "type"]
    assert [entry[name] for name in ("update", "user", "secret", "type")] == ["Secret set", "alice", "api", "plain"]
    assert bench.store.committed[-1].secrets["api"].private == b"value"


@pytest.mark.parametrize(
    ("payload", "error", "text"),
    [
        ({}, SecretsRefused, "^parsing new secrets: no new secrets defined$"),
        ({"shared": {"Key": "AA=="}}, SecretsRefused, "^parsing new secrets: secret shared is not writeable$"),
        ({"new": {"Key": "AA=="}}, SecretsRefused, "^parsing new secrets: secret manifest specifies a secret which"),
        (
            {"api": {"Key": "AA=="}, "other": {"Key": "AA=="}},
            NotAllowed,
            "^user alice is not allowed to update secret: other$",
        ),
    ],
)
async def test_an_upload_is_taken_as_a_whole_or_not_at_all(
    bench: Bench, payload: dict[str, object], error: type[CoordinatorError], text: str
) -> None:
    await bench.coordinator.set_manifest(with_users())
    with pytest.raises(error, match=text):
        await bench.coordinator.secrets_set(payload, ALICE)
    assert bench.coordinator.secrets_get(["api"], ALICE)["api"].public == b""
    assert len(bench.store.committed) == 1


async def test_an_upload_that_breaks_a_template_is_refused(bench: Bench) -> None:
    await bench.coordinator.set_manifest(with_users(Marbles=web(Env={"KEY": "{{ string .Secrets.api }}"})))
    with pytest.raises(SecretsRefused, match="secret contains null bytes"):
        await bench.coordinator.secrets_set({"api": {"Key": "AAA="}}, ALICE)


# --- own quote (3.6)


async def test_recovery_rebinds_the_quote_to_another_root(bench: Bench) -> None:
    await bench.own_quote.start()
    before = await bench.coordinator.quote(b"")
    await bench.own_quote.rebind(b"another root")
    after = await bench.coordinator.quote(b"")
    assert after.quote is not None
    assert after.quote != before.quote
    assert coordinator_report_data(b"another root", b"") in after.quote


# --- sign-quote (3.12)


async def test_a_genuine_quote_of_anybody_is_signed_with_its_tcb_status(bench: Bench) -> None:
    quote = bench.platform.issuer(SimulatedEnclave.default("whoever")).issue(bytes(64)).to_wire()
    with pytest.raises(FeatureDisabled, match=r"^SignQuoteEndpoint feature is not enabled in the manifest$"):
        await bench.coordinator.sign_quote(quote)
    await bench.coordinator.set_manifest(manifest(Config={"FeatureGates": ["signquoteendpoint"]}))
    for sent in (quote, quote[16:]):  # with and without the header: what was sent is signed
        answer = await bench.coordinator.sign_quote(sent)
        assert answer.tcb_status == "UpToDate"
        key = bench.coordinator.ca.root.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(answer.signature, base64.b64encode(sent) + b"UpToDate", ec.ECDSA(SHA256()))
    with pytest.raises(QuoteNotVerified, match=r"^empty report$"):
        await bench.coordinator.sign_quote(b"")
    with pytest.raises(QuoteNotVerified):
        await bench.coordinator.sign_quote(quote[:-200])


# --- monotonic counter (3.14)


async def leaf_of(bench: Bench, uuid: str = UUID) -> list[bytes]:
    grant = await bench.activate(uuid=uuid)
    chain = x509.load_pem_x509_certificates(grant.env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])
    return [certificate.public_bytes(Encoding.DER) for certificate in chain]


async def test_a_counter_only_rises_and_answers_what_it_was(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest(Config={"FeatureGates": ["MonotonicCounter"]}))
    chain = await leaf_of(bench)
    answers = [await bench.coordinator.set_counter(chain, "foo", value) for value in (3, 2, 7, 2**64 - 1, 0)]
    assert answers == [0, 3, 3, 7, 2**64 - 1]
    assert await bench.coordinator.set_counter(chain, "bar", 1) == 0
    other = await leaf_of(bench, "0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2d4")
    assert await bench.coordinator.set_counter(other, "foo", 1) == 0
    assert base64.b64encode(b"foo").decode() in next(iter(bench.store.committed[-1].counters))


async def test_a_counter_that_is_not_committed_has_not_risen(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest(Config={"FeatureGates": ["MonotonicCounter"]}))
    chain = await leaf_of(bench)
    bench.store.failing = True
    with pytest.raises(CoordinatorError, match="disk full"):
        await bench.coordinator.set_counter(chain, "foo", 3)
    bench.store.failing = False
    assert await bench.coordinator.set_counter(chain, "foo", 1) == 0


async def test_counters_are_for_marbles_of_the_ca_in_force(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest())
    chain = await leaf_of(bench)
    with pytest.raises(FeatureDisabled, match=r"^MonotonicCounter feature is not enabled in the manifest$"):
        bench.coordinator.check_counter(chain)


@pytest.mark.parametrize("chain", [[], [b"junk"], [user("alice").der]])
async def test_nobody_else_has_counters(bench: Bench, chain: list[bytes]) -> None:
    await bench.coordinator.set_manifest(manifest(Config={"FeatureGates": ["MonotonicCounter"]}))
    with pytest.raises(Unauthorized, match=r"^unauthorized marble: "):
        bench.coordinator.check_counter(chain)
