# SPDX-License-Identifier: Apache-2.0
"""TLS on the client API's and the Marble API's port, as `openssl s_client` meets it: versions, groups and suites that
clients in FIPS mode need, what each port presents and when, and which client certificates are taken."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.kit.coordinator import Bench, manifest
from tests.kit.deployment import b64
from tests.kit.marble_client import MarbleCredentials
from tests.kit.marble_deployment import MarbleDeployment, deployed, owned, somebody
from tests.kit.openssl_judge import Handshake, openssl, public_key, s_client, verifies, x509
from tests.kit.users import public_pem, recovery_key, user

pytestmark = pytest.mark.asyncio(loop_scope="module")

both = pytest.mark.parametrize("port", ["client", "mesh"])
GROUPS = {"P-256": "prime256v1", "P-384": "secp384r1", "P-521": "secp521r1", "X25519": "X25519"}
OLD = ["-cipher", "ALL:@SECLEVEL=0"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("town")) as made:
        await made.set_manifest(manifest())
        yield made


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A Marble's certificate, for s_client."""
    return ["-cert", str(pem(somebody(), tmp_path_factory.mktemp("somebody")))]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seen(town: MarbleDeployment, shown: list[str]) -> dict[str, Handshake]:
    """One handshake with each port, with all defaults."""
    return {port: await connect(town, port, *shown) for port in ("client", "mesh")}


def pem(who: MarbleCredentials, directory: Path) -> Path:
    file = directory / "marble.pem"
    key = who.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(who.certificate.public_bytes(Encoding.PEM) + key)
    return file


async def connect(town: MarbleDeployment, port: str, *flags: str) -> Handshake:
    """On the Marble API's port with its protocol; the client API's takes any."""
    if port == "client":
        return await s_client(town.client, *flags)
    return await s_client(town.mesh, "-alpn", "h2", *flags)


# --- the profile of both ports


@both
@pytest.mark.parametrize("group", GROUPS)
async def test_each_group_is_offered(town: MarbleDeployment, shown: list[str], port: str, group: str) -> None:
    done = await connect(town, port, *shown, "-tls1_3", "-groups", group)
    assert done.ok
    assert GROUPS[group] in done.line("Server Temp Key:")


@both
@pytest.mark.parametrize("group", ["P-256", "P-384"])
async def test_groups_are_offered_in_tls_1_2_too(
    town: MarbleDeployment, shown: list[str], port: str, group: str
) -> None:
    """There a client must also name the curve of the certificate (RFC 8422, 5.1)."""
    done = await connect(town, port, *shown, "-tls1_2", "-groups", f"{group}:P-384" if group != "P-384" else group)
    assert done.ok
    assert GROUPS[group] in done.line("Server Temp Key:")


@both
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_tls_1_2_and_1_3_are_spoken(town: MarbleDeployment, shown: list[str], port: str, version: str) -> None:
    done = await connect(town, port, *shown, "-" + version.lower().replace("v", "").replace(".", "_"))
    assert done.ok
    assert done.line("New,").startswith(version)


@both
@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
async def test_older_versions_are_refused(town: MarbleDeployment, shown: list[str], port: str, version: str) -> None:
    done = await connect(town, port, *shown, *OLD, version)
    assert not done.ok
    assert "alert protocol version" in done.text


@both
async def test_the_newest_version_is_preferred(seen: dict[str, Handshake], port: str) -> None:
    assert seen[port].line("New,").startswith("TLSv1.3")


@both
@pytest.mark.parametrize(
    ("version", "suite"),
    [
        ("1_3", "TLS_AES_128_GCM_SHA256"),
        ("1_3", "TLS_AES_256_GCM_SHA384"),
        ("1_2", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("1_2", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ],
)
async def test_the_suites_of_fips_are_offered(
    town: MarbleDeployment, shown: list[str], port: str, version: str, suite: str
) -> None:
    wanted = ["-ciphersuites" if version == "1_3" else "-cipher", suite]
    done = await connect(town, port, *shown, f"-tls{version}", *wanted, "-groups", "P-256:P-384:P-521")
    assert done.ok
    assert done.line("New,").endswith(f"Cipher is {suite}")


@both
@pytest.mark.parametrize("suite", ["ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "AES128-GCM-SHA256"])
async def test_suites_without_forward_secrecy_or_aead_are_refused(
    town: MarbleDeployment, shown: list[str], port: str, suite: str
) -> None:
    done = await connect(town, port, *shown, "-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0")
    assert not done.ok


@both
async def test_the_key_is_p_384(seen: dict[str, Handshake], port: str) -> None:
    done = seen[port]
    assert (done.line("Peer signing digest:"), done.line("Peer signature type:")) == ("SHA384", "ECDSA")
    assert done.line("Server public key is") == "384 bit"


@both
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_no_session_is_resumed(town: MarbleDeployment, shown: list[str], port: str, version: str) -> None:
    """Each connection proves its certificate anew: the quote is bound to the one of this connection."""
    done = await connect(town, port, *shown, version, "-reconnect")
    assert done.text.count("New, TLSv") == 6
    assert "Reused, " not in done.text


@both
async def test_there_is_no_compression(town: MarbleDeployment, shown: list[str], port: str) -> None:
    assert (await connect(town, port, *shown, "-tls1_2", "-comp")).line("Compression:") == "NONE"


@both
async def test_a_client_certificate_of_any_issuer_is_asked_for(seen: dict[str, Handshake], port: str) -> None:
    assert "No client certificate CA names sent" in seen[port].text
    assert seen[port].line("Requested Signature Algorithms:")


# --- which certificate a port presents


async def test_the_client_api_presents_the_root_alone(town: MarbleDeployment, seen: dict[str, Handshake]) -> None:
    presented = seen["client"].presented
    assert presented == [town.root]
    assert (await town.get("/api/v2/quote")).data["cert"].encode().endswith(presented[0])


async def test_the_marble_api_presents_the_marble_root_alone(
    town: MarbleDeployment, seen: dict[str, Handshake]
) -> None:
    presented = seen["mesh"].presented
    assert presented == [(await town.activate()).env["MARBLE_PREDEFINED_ROOT_CA"]]


@both
async def test_what_is_presented_is_self_signed(seen: dict[str, Handshake], port: str) -> None:
    (own,) = seen[port].presented
    subject, issuer = x509(own, "-subject", "-issuer").splitlines()
    assert subject.removeprefix("subject=") == issuer.removeprefix("issuer=")
    assert verifies(own, own, "-x509_strict", "-purpose", "sslserver")


async def test_the_marble_root_has_name_and_key_of_the_intermediate(
    town: MarbleDeployment, seen: dict[str, Handshake]
) -> None:
    (marble_root,) = seen["mesh"].presented
    intermediate = (await town.get("/api/v2/quote")).data["cert"].encode()
    assert public_key(marble_root) == public_key(intermediate)
    name = "subject=CN = MarbleRun Coordinator - Intermediate CA"
    assert x509(marble_root, "-subject") == x509(intermediate, "-subject") == name


@both
@pytest.mark.parametrize(
    "name", [["-verify_hostname", "localhost"], ["-verify_ip", "127.0.0.1"], ["-verify_ip", "::1"]]
)
async def test_a_strict_client_verifies_the_port_by_its_own_certificate(
    town: MarbleDeployment, shown: list[str], tmp_path: Path, port: str, name: list[str]
) -> None:
    """The CA certificate is the TLS leaf: digitalSignature, serverAuth and names stand on it."""
    anchor = tmp_path / "anchor.pem"
    anchor.write_bytes(town.root if port == "client" else town.marble_root)
    flags = ["-CAfile", str(anchor), "-verify_return_error", "-x509_strict", "-purpose", "sslserver", *name]
    done = await connect(town, port, *shown, *flags)
    assert done.ok
    assert done.line("Verify return code:") == "0 (ok)"


@both
async def test_serial_numbers_are_positive_and_at_most_20_bytes(seen: dict[str, Handshake], port: str) -> None:
    (own,) = seen[port].presented
    serial = int(x509(own, "-serial").removeprefix("serial="), 16)
    assert 0 < serial < 2**159


# --- in each state, and when it changes


async def test_both_ports_present_their_certificates_before_there_is_a_manifest(
    machine: Path, tmp_path: Path, shown: list[str]
) -> None:
    async with deployed(Bench.make(machine), tmp_path) as fresh:
        assert (await fresh.get("/status")).data["StatusCode"] == 2
        assert (await connect(fresh, "client")).presented == [fresh.root]
        assert (await connect(fresh, "mesh", *shown)).presented == [fresh.marble_root]


async def test_recovery_presents_another_root_and_the_first_one_once_it_is_done(
    machine: Path, tmp_path: Path, shown: list[str]
) -> None:
    keys = {"owner": public_pem(recovery_key().public_key()).decode()}
    first = Bench.make(machine)
    async with deployed(first, tmp_path) as made:
        answer = await made.post("/manifest", manifest(RecoveryKeys=keys))
        before = [(await connect(made, port, *shown)).presented for port in ("client", "mesh")]
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
    secret = recovery_key().decrypt(base64.b64decode(answer.data["RecoverySecrets"]["owner"]), oaep)
    signature = recovery_key().sign(secret, padding.PKCS1v15(), SHA256())
    locked = Bench.make(machine, store=first.store, locked=first.store.recovery_data)
    async with deployed(locked, tmp_path) as made:
        assert (await made.get("/status")).data["StatusCode"] == 1
        meanwhile = [(await connect(made, port, *shown)).presented for port in ("client", "mesh")]
        assert meanwhile == [[made.root], [made.marble_root]] != before
        body = {"recoverySecret": b64(secret), "recoverySecretSignature": b64(signature)}
        assert (await made.post("/api/v2/recover", body)).data["remaining"] == 0
        assert [(await connect(made, port, *shown)).presented for port in ("client", "mesh")] == before


@pytest.mark.parametrize("update", ["package", "whole"])
async def test_an_update_changes_the_marble_root_and_not_the_root(
    machine: Path, tmp_path: Path, shown: list[str], update: str
) -> None:
    raw = {"package": b'{"Packages":{"app":{"SecurityVersion":3}}}', "whole": owned(Config={"FeatureGates": []})}
    async with deployed(Bench.make(machine), tmp_path) as made:
        await made.set_manifest(owned())
        before = [(await connect(made, port, *shown)).presented for port in ("client", "mesh")]
        await made.update(raw[update], user("alice"))
        after = [(await connect(made, port, *shown)).presented for port in ("client", "mesh")]
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert after[1] == [made.marble_root]


# --- client certificates


async def test_the_client_api_serves_clients_without_a_certificate(town: MarbleDeployment) -> None:
    assert (await connect(town, "client")).ok


@pytest.mark.parametrize(("version", "alert"), [("-tls1_3", "certificate required"), ("-tls1_2", "handshake failure")])
async def test_the_marble_api_requires_a_certificate(town: MarbleDeployment, version: str, alert: str) -> None:
    done = await connect(town, "mesh", version)
    assert not done.ok
    assert f"alert {alert}" in done.text
    assert town.refused[-1] == ("mesh", "peer did not return a certificate")


@both
@pytest.mark.parametrize(
    "key",
    [["rsa:2048"], *(["ec", "-pkeyopt", f"ec_paramgen_curve:P-{n}"] for n in (256, 384, 521)), ["ed25519"]],
    ids=lambda words: words[-1].removeprefix("ec_paramgen_curve:"),
)
async def test_a_self_signed_certificate_with_any_usual_key_is_taken(
    town: MarbleDeployment, tmp_path: Path, port: str, key: list[str]
) -> None:
    file = str(tmp_path / "key.pem")
    certificate = openssl("req", "-x509", "-newkey", *key, "-nodes", "-subj", "/CN=u", "-keyout", file)
    (tmp_path / "cert.pem").write_bytes(certificate)
    assert (await connect(town, port, "-cert", str(tmp_path / "cert.pem"), "-key", file)).ok


@both
async def test_an_expired_certificate_is_taken(town: MarbleDeployment, tmp_path: Path, port: str) -> None:
    assert (await connect(town, port, "-cert", str(pem(MarbleCredentials.make(expired=True), tmp_path)))).ok


@both
async def test_a_certificate_of_an_unknown_issuer_is_taken(town: MarbleDeployment, tmp_path: Path, port: str) -> None:
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    key, ca, leaf = (str(tmp_path / name) for name in ("key.pem", "ca.pem", "leaf.pem"))
    openssl("req", "-x509", *new, "-subj", "/CN=nobody knows", "-keyout", f"{ca}.key", "-out", ca)
    request = openssl("req", "-new", *new, "-subj", "/CN=leaf", "-keyout", key)
    openssl("x509", "-req", "-CA", ca, "-CAkey", f"{ca}.key", "-set_serial", "7", "-out", leaf, data=request)
    assert (await connect(town, port, "-cert", leaf, "-key", key)).ok


# --- ALPN


async def test_the_marble_api_negotiates_h2(town: MarbleDeployment, shown: list[str]) -> None:
    assert (await s_client(town.mesh, *shown, "-alpn", "h2")).line("ALPN protocol:") == "h2"
    assert (await s_client(town.mesh, *shown, "-alpn", "http/1.1,h2")).line("ALPN protocol:") == "h2"


async def test_the_marble_api_speaks_nothing_but_h2(town: MarbleDeployment, shown: list[str]) -> None:
    for flags in ([], ["-alpn", "http/1.1"]):
        before = len(town.refused)
        assert "No ALPN negotiated" in (await s_client(town.mesh, *shown, *flags)).text
        assert town.refused[before:] == [("mesh", "client did not offer h2 by ALPN")]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [("h2", "h2"), ("http/1.1", "http/1.1"), ("h2,http/1.1", "h2"), ("http/1.1,h2", "h2"), ("", "")],
)
async def test_the_client_api_speaks_both_versions_of_http(town: MarbleDeployment, offered: str, chosen: str) -> None:
    flags = ["-alpn", offered] if offered else []
    assert (await s_client(town.client, *flags)).line("ALPN protocol:") == chosen
