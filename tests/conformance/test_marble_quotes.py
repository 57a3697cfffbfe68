# SPDX-License-Identifier: Apache-2.0
"""What a Marble's quote must be bound to, and how it is judged: platform, patch level, advisories, package.

Every Marble here activates over real TLS, with a real quote of a simulated platform: the verifier is the one of
production, with another root.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpclib.const import Status

from sds.attestation.appraiser import Appraiser
from sds.attestation.collateral import Collateral, CollateralKey
from sds.attestation.evidence import Evidence
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform
from tests.kit.coordinator import APP, PACKAGE, Bench, manifest
from tests.kit.marble_client import MarbleCredentials
from tests.kit.marble_deployment import MarbleDeployment, deployed, somebody
from tests.kit.platform import NOW, Lab, lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

DENIED = "marble verification failed: invalid quote: "
PACKAGES: dict[str, dict[str, object]] = {
    "signed": PACKAGE,
    "measured": {"UniqueID": APP.unique_id.hex(), "Debug": False},
    "upper-case": {"UniqueID": APP.unique_id.hex().upper()},
    "upper-case-signer": PACKAGE | {"SignerID": APP.signer_id.hex().upper()},
    "older": PACKAGE | {"SecurityVersion": 1},
    "other-measurement": {"UniqueID": "ab" * 32},
    "other-signer": PACKAGE | {"SignerID": "ab" * 32},
    "other-product": PACKAGE | {"ProductID": 8},
    "newer": PACKAGE | {"SecurityVersion": 4},
    "debug": PACKAGE | {"Debug": True},
}


def of_packages(packages: dict[str, dict[str, object]], **members: object) -> bytes:
    """A manifest with one Marble type of the same name for each package."""
    return manifest(Packages=packages, Marbles={name: {"Package": name} for name in packages}, **members)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("town")) as made:
        await made.set_manifest(of_packages(PACKAGES))
        yield made


def over(town: MarbleDeployment, data: bytes) -> bytes:
    """A quote that carries the SHA-256 of `data` and zeros."""
    report_data = hashlib.sha256(data).digest() + bytes(32)
    return town.bench.platform.issuer(APP).issue(report_data).to_wire()


# --- what a quote is bound to


async def test_the_report_data_is_the_sha256_of_the_tls_client_certificate(town: MarbleDeployment) -> None:
    who = MarbleCredentials.make()
    assert (await town.activate("signed", who=who, quote=over(town, who.certificate_der))).env


@pytest.mark.parametrize("what", ["the public key", "the request", "the certificate in PEM", "nothing"])
async def test_a_hash_of_anything_else_is_refused(town: MarbleDeployment, what: str) -> None:
    who = MarbleCredentials.make()
    public = who.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = who.certificate.public_bytes(Encoding.PEM)
    data = {"the public key": public, "the request": who.csr, "the certificate in PEM": pem, "nothing": b""}[what]
    refusal = await town.refusal("signed", who=who, quote=over(town, data))
    assert refusal.status is Status.PERMISSION_DENIED
    assert refusal.message.startswith(f"{DENIED}hash(cert) != report.Data: ")


async def test_a_quote_is_worth_nothing_on_a_connection_with_another_certificate(town: MarbleDeployment) -> None:
    stolen = town.quote(somebody())
    await town.activate("signed", quote=stolen)
    refusal = await town.refusal("signed", who=MarbleCredentials.make(), quote=stolen)
    assert refusal.message.startswith(f"{DENIED}hash(cert) != report.Data: ")


async def test_a_quote_comes_with_open_enclaves_header(town: MarbleDeployment) -> None:
    quote = town.quote()
    assert quote[:16] == bytes.fromhex("0100000002000000") + (len(quote) - 16).to_bytes(8, "little")
    await town.activate("signed", quote=quote)


async def test_a_raw_quote_is_taken_too(town: MarbleDeployment) -> None:
    raw = town.quote()[16:]
    assert int.from_bytes(raw[:2], "little") == 3
    await town.activate("signed", quote=raw)


# --- genuine at all


async def test_a_marble_without_a_quote_is_refused(town: MarbleDeployment) -> None:
    refusal = await town.refusal("signed", quote=b"")
    assert refusal.status is Status.PERMISSION_DENIED
    assert refusal.message.startswith(DENIED)


@pytest.mark.parametrize(
    "damage",
    [
        lambda quote: quote[: len(quote) // 2],
        lambda quote: quote[:80] + bytes([quote[80] ^ 1]) + quote[81:],
        lambda quote: quote[:16] + b"\x09" + quote[17:],
        lambda quote: b"no quote at all",
        lambda quote: quote + b"more",
        lambda quote: bytes(20_000),
    ],
    ids=["half", "one bit", "another version", "text", "a tail", "zeros"],
)
async def test_what_is_no_genuine_quote_is_refused(town: MarbleDeployment, damage: Callable[[bytes], bytes]) -> None:
    refusal = await town.refusal("signed", quote=damage(town.quote()))
    assert refusal.status is Status.PERMISSION_DENIED
    assert refusal.message.startswith(DENIED)


async def test_a_quote_of_a_platform_under_another_root_is_refused(town: MarbleDeployment, tmp_path: Path) -> None:
    foreign = SimulatedPlatform.open(tmp_path, town.bench.clock())
    refusal = await town.refusal("signed", quote=somebody().quote(foreign.issuer(APP)))
    assert refusal.message.startswith(DENIED)
    assert await town.metric('marblemesh_attestation_refused_total{reason="untrusted"}') >= 1


async def test_stale_collateral_is_final(machine: Path, tmp_path: Path) -> None:
    bench = Bench.make(machine)
    published = bench.clock()
    bench.platform.collateral.clock = lambda: published  # the platform's documents stay as they are
    bench.clock.forward(timedelta(days=100))
    async with deployed(bench, tmp_path) as town:
        await town.set_manifest(manifest())
        assert (await town.refusal()).message.startswith(DENIED)
        assert await town.metric('marblemesh_attestation_refused_total{reason="expired"}') == 1


# --- the package


@pytest.mark.parametrize("package", ["signed", "measured", "upper-case", "upper-case-signer", "older"])
async def test_an_enclave_of_the_package_is_taken(town: MarbleDeployment, package: str) -> None:
    """Hexadecimal digits in either case; a SecurityVersion that is higher than required."""
    assert (await town.activate(package)).env


@pytest.mark.parametrize(
    ("package", "expected", "got"),
    [
        ("other-measurement", f"unique id: {'ab' * 32}", f"unique id: {APP.unique_id.hex()}"),
        ("other-signer", f"signer id: {'ab' * 32}", f"signer id: {APP.signer_id.hex()}"),
        ("other-product", "product id: 8", "product id: 7"),
        ("newer", "security version: at least 4", "security version: 3"),
        ("debug", "debug: true", "debug: false"),
    ],
)
async def test_an_enclave_of_another_package_is_refused_with_both_sides(
    town: MarbleDeployment, package: str, expected: str, got: str
) -> None:
    refusal = await town.refusal(package)
    assert refusal.status is Status.PERMISSION_DENIED
    assert refusal.message == (f"{DENIED}PackageProperties not compliant:\nexpected: {{{expected}}}\ngot: {{{got}}}")


async def test_a_package_without_debug_refuses_debug_enclaves(town: MarbleDeployment) -> None:
    refusal = await town.refusal("signed", code=replace(APP, debug=True))
    assert refusal.message.startswith(f"{DENIED}PackageProperties not compliant:\nexpected: {{debug: false}}\n")


async def test_all_that_is_wrong_is_named_at_once(town: MarbleDeployment) -> None:
    other = replace(APP, product_id=9, security_version=2)
    assert (await town.refusal("signed", code=other)).message.endswith(
        "\nexpected: {product id: 7, security version: at least 3}\ngot: {product id: 9, security version: 2}"
    )


# --- infrastructures


INFRASTRUCTURE = {"CPUSVN": [0] * 16, "QESVN": 2, "PCESVN": 3, "RootCA": "AAEC"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def placed(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    """With infrastructures in the manifest."""
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("placed")) as made:
        await made.set_manifest(of_packages(PACKAGES, Infrastructures={"here": INFRASTRUCTURE}))
        yield made


async def test_infrastructures_restrict_nothing(placed: MarbleDeployment) -> None:
    assert (await placed.activate("signed")).env


@pytest.mark.parametrize("quote", [None, b"", b"no quote"], ids=["another package", "none", "text"])
async def test_with_infrastructures_the_text_is_another(placed: MarbleDeployment, quote: bytes | None) -> None:
    refusal = await placed.refusal("newer", quote=quote)
    assert refusal.status is Status.PERMISSION_DENIED
    assert refusal.message.startswith("marble verification failed: invalid infrastructure")


# --- patch level and advisories


@dataclass
class Weather:
    """A platform whose patch level tests change, and the enclaves on it."""

    lab: Lab = field(default_factory=lab)

    async def get(self, key: CollateralKey) -> Collateral:
        return self.lab.collateral(key.tee)

    def quote(self, code: SimulatedEnclave = APP) -> bytes:
        report_data = hashlib.sha256(somebody().certificate_der).digest() + bytes(32)
        evidence: Evidence = self.lab.sgx(code, report_data)
        return evidence.to_wire()


LEVELS: dict[str, dict[str, object]] = {
    "default": PACKAGE,
    "out-of-date": PACKAGE | {"AcceptedTCBStatuses": ["OutOfDate"]},
    "wrong-case": PACKAGE | {"AcceptedTCBStatuses": ["outofdate", "swhardeningneeded"]},
    "advised": PACKAGE | {"AcceptedAdvisories": ["INTEL-SA-00001", "intel-sa-00002"]},
    "misspelt": PACKAGE | {"AcceptedAdivsories": ["INTEL-SA-00001"]},
    "advised-out-of-date": PACKAGE | {"AcceptedTCBStatuses": ["OutOfDate"], "AcceptedAdvisories": ["INTEL-SA-00001"]},
}
WEATHER = Weather()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def patched(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    appraiser = Appraiser(WEATHER.lab.verifier(), WEATHER, lambda: NOW)
    async with deployed(Bench.make(machine, appraiser=appraiser), tmp_path_factory.mktemp("patched")) as made:
        await made.set_manifest(of_packages(LEVELS))
        yield made


def weather(status: str, *advisories: str) -> None:
    WEATHER.lab = lab().saying(status=status, advisories=advisories)


@pytest.mark.parametrize("package", LEVELS)
async def test_an_up_to_date_platform_always_passes(patched: MarbleDeployment, package: str) -> None:
    weather("UpToDate")
    await patched.activate(package, quote=WEATHER.quote())


@pytest.mark.parametrize(
    ("status", "package"),
    [
        ("SWHardeningNeeded", "default"),  # an empty list means this status
        ("OutOfDate", "out-of-date"),
        ("SWHardeningNeeded", "advised"),
    ],
)
async def test_an_accepted_status_passes(patched: MarbleDeployment, status: str, package: str) -> None:
    weather(status, "INTEL-SA-00001")
    await patched.activate(package, quote=WEATHER.quote())


@pytest.mark.parametrize(
    ("status", "package"),
    [
        ("OutOfDate", "default"),
        ("OutOfDate", "wrong-case"),
        ("SWHardeningNeeded", "wrong-case"),
        ("SWHardeningNeeded", "out-of-date"),
        ("ConfigurationNeeded", "out-of-date"),
        ("ConfigurationNeeded", "default"),
        ("OutOfDateConfigurationNeeded", "out-of-date"),
        ("ConfigurationAndSWHardeningNeeded", "default"),
        ("Revoked", "out-of-date"),
    ],
)
async def test_any_other_status_is_refused(patched: MarbleDeployment, status: str, package: str) -> None:
    """Names of statuses are compared with their case."""
    weather(status, "INTEL-SA-00001")
    refusal = await patched.refusal(package, quote=WEATHER.quote())
    assert refusal.status is Status.PERMISSION_DENIED
    assert refusal.message.startswith(f"{DENIED}TCB level invalid: {status}")


async def test_every_advisory_must_be_accepted_whatever_its_case(patched: MarbleDeployment) -> None:
    weather("SWHardeningNeeded", "intel-sa-00001", "INTEL-SA-00002")
    await patched.activate("advised", quote=WEATHER.quote())
    weather("SWHardeningNeeded", "INTEL-SA-00001", "INTEL-SA-00003", "INTEL-SA-00004")
    assert (await patched.refusal("advised", quote=WEATHER.quote())).message.startswith(
        f"{DENIED}TCB status SWHardeningNeeded contains advisories not accepted by configuration: "
        "[INTEL-SA-00003 INTEL-SA-00004]"
    )


@pytest.mark.parametrize("package", ["default", "misspelt"])
async def test_without_a_list_every_advisory_is_accepted(patched: MarbleDeployment, package: str) -> None:
    """As MarbleRun's documentation once spelt it, the list has no effect."""
    weather("SWHardeningNeeded", "INTEL-SA-00003")
    await patched.activate(package, quote=WEATHER.quote())


async def test_advisories_that_are_not_told_are_not_accepted(patched: MarbleDeployment) -> None:
    weather("SWHardeningNeeded")
    refusal = await patched.refusal("advised", quote=WEATHER.quote())
    assert refusal.status is Status.PERMISSION_DENIED
    assert "advisories not accepted by configuration" in refusal.message


async def test_advisories_count_for_software_hardening_only(patched: MarbleDeployment) -> None:
    weather("OutOfDate", "INTEL-SA-00003")
    await patched.activate("advised-out-of-date", quote=WEATHER.quote())


# --- without attestation


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def insecure(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    async with deployed(Bench.make(machine, insecure=True), tmp_path_factory.mktemp("insecure")) as made:
        await made.set_manifest(of_packages(PACKAGES, Infrastructures={"here": INFRASTRUCTURE}))
        yield made


@pytest.mark.parametrize("quote", [b"", b"any bytes", bytes(100_000)], ids=["none", "text", "many"])
@pytest.mark.parametrize("package", ["signed", "debug"])
async def test_without_a_quote_of_its_own_the_coordinator_looks_at_none(
    insecure: MarbleDeployment, quote: bytes, package: str
) -> None:
    assert (await insecure.activate(package, quote=quote)).env


async def test_a_coordinator_without_attestation_says_so(insecure: MarbleDeployment) -> None:
    assert (await insecure.get("/api/v2/quote")).data["quote"] is None
    assert (await insecure.get("/quote")).data["Quote"] is None


async def test_everything_but_quotes_is_checked_all_the_same(insecure: MarbleDeployment) -> None:
    assert (await insecure.refusal("nobody", quote=b"")).message == (
        "marble verification failed: unknown marble type requested"
    )
    assert (await insecure.refusal("signed", "no uuid", quote=b"")).status is Status.INVALID_ARGUMENT
