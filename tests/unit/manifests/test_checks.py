# SPDX-License-Identifier: Apache-2.0
"""Every rule between members: MarbleRun's with its message, ours with a reason, each at its place."""

from __future__ import annotations

import ssl
from datetime import timedelta
from typing import Any

import pytest

from manifests.address import TcpAddress, UnixAddress
from manifests.errors import ManifestError
from manifests.model import FeatureGate, SealMode
from manifests.parse import parse
from manifests.places import MAX_PROBLEMS
from tests.kit.manifests import SGX_PACKAGE, TDX_PACKAGE, certificate, manifest, raw

USER = certificate()


def problems(document: dict[str, Any]) -> list[str]:
    try:
        parse(raw(document))
    except ManifestError as error:
        return [str(problem) for problem in error.problems]
    return []


def package(**members: Any) -> dict[str, Any]:
    return manifest(Packages={"p": members, "vm": TDX_PACKAGE})


def tls(**tag: Any) -> dict[str, Any]:
    """`web` (SGX) has the tag."""
    return manifest(TLS={"t": tag}, Marbles={"web": {"Package": "p", "TLS": ["t"]}, "db": {"Package": "vm"}})


def secrets(**values: Any) -> dict[str, Any]:
    return manifest(Secrets=values)


def roles(**role: Any) -> dict[str, Any]:
    values = {"own": {"Type": "symmetric-key", "Size": 128}, "up": {"Type": "plain", "UserDefined": True}}
    return manifest(Secrets=values, Roles={"r": role})


MARBLERUN = {
    "no packages": (manifest(Packages={}, Marbles={}), "no allowed packages defined (at Packages)"),
    "no marbles": (manifest(Marbles={}), "no allowed marbles defined (at Marbles)"),
    "both": (
        package(**SGX_PACKAGE, UniqueID="ab" * 32),
        "manifest specifies both UniqueID *and* SignerID/ProductID/SecurityVersion in package p (at Packages.p)",
    ),
    "signer": (
        package(ProductID=1, SecurityVersion=1),
        "manifest misses value for SignerID in package p (at Packages.p.SignerID)",
    ),
    "product": (
        package(SignerID="ab" * 32, SecurityVersion=1),
        "manifest misses value for ProductID in package p (at Packages.p.ProductID)",
    ),
    "version": (
        package(SignerID="ab" * 32, ProductID=1),
        "manifest misses value for SecurityVersion in package p (at Packages.p.SecurityVersion)",
    ),
    "marble package": (
        manifest(Marbles={"web": {"Package": "x"}}),
        "manifest does not contain marble package x (at Marbles.web.Package)",
    ),
    "marble tag": (
        manifest(Marbles={"web": {"Package": "p", "TLS": ["x"]}}),
        "manifest misses TLS entry for x (at Marbles.web.TLS[0])",
    ),
    "env nul": (
        manifest(Marbles={"web": {"Package": "p", "Parameters": {"Env": {"A": "x\0"}}}}),
        "in Marble web: env variable: A: content contains null bytes (at Marbles.web.Parameters.Env.A)",
    ),
    "in port": (tls(Incoming=[{}]), "manifest misses Port in TLS.Incoming.t (at TLS.t.Incoming[0].Port)"),
    "in cert": (
        tls(Incoming=[{"Port": "1", "Cert": "s", "DisableClientAuth": True}]),
        "TLS.Incoming.t references undefined secret s (at TLS.t.Incoming[0].Cert)",
    ),
    "in no auth": (
        tls(Incoming=[{"Port": "1", "DisableClientAuth": True}]),
        "TLS.Incoming.t disables client authentication (at TLS.t.Incoming[0].DisableClientAuth)",
    ),
    "in auth": (
        tls(Incoming=[{"Port": "1", "Cert": "s"}])
        | {"Secrets": {"s": {"Type": "cert-ecdsa", "Size": 256, "Shared": True}}},
        "TLS.Incoming.t defines Cert but does not disable client authentication (at TLS.t.Incoming[0].Cert)",
    ),
    "out addr": (tls(Outgoing=[{"Port": "1"}]), "manifest misses Addr in TLS.Outgoing.t (at TLS.t.Outgoing[0].Addr)"),
    "out port": (tls(Outgoing=[{"Addr": "x"}]), "manifest misses Port in TLS.Outgoing.t (at TLS.t.Outgoing[0].Port)"),
    "secret type": (secrets(s={"Type": "x"}), "unknown type: x for secret: s (at Secrets.s.Type)"),
    "plain": (
        secrets(s={"Type": "plain"}),
        "secret s is invalid: unsupported secret of type plain (at Secrets.s.Type)",
    ),
    "key size 0": (secrets(s={"Type": "symmetric-key"}), "invalid secret size: s (at Secrets.s.Size)"),
    "key size 9": (secrets(s={"Type": "symmetric-key", "Size": 9}), "invalid secret size: s (at Secrets.s.Size)"),
    "key derived": (
        secrets(s={"Type": "symmetric-key", "Size": 65288}),
        "invalid secret size: s (at Secrets.s.Size)",
    ),
    "ecdsa": (
        secrets(s={"Type": "cert-ecdsa", "Size": 255}),
        "invalid secret size for cert-ecdsa secret s: unsupported size 255: does not map to a supported curve"
        " (at Secrets.s.Size)",
    ),
    "ed25519": (
        secrets(s={"Type": "cert-ed25519", "Size": 256}),
        "invalid secret size for cert-ed25519 secret s: none is expected, got: 256 (at Secrets.s.Size)",
    ),
    "validity": (
        secrets(s={"Type": "cert-ed25519", "ValidFor": 1, "Cert": {"NotAfter": "2030-01-01T00:00:00Z"}}),
        "ambiguous certificate validity duration for secret: s, both NotAfter and ValidFor are specified"
        " (at Secrets.s.ValidFor)",
    ),
    "ip": (
        secrets(s={"Type": "cert-ed25519", "Cert": {"IPAddresses": ["1.2.3"]}}),
        "invalid IP address: 1.2.3 (at Secrets.s.Cert.IPAddresses[0])",
    ),
    "user none": (
        manifest(Users={"u": {}}),
        "manifest does not contain a certificate for user u (at Users.u.Certificate)",
    ),
    "user role": (
        manifest(Users={"u": {"Certificate": USER, "Roles": ["r"]}}),
        "manifest specifies role r for user u, but role does not exist (at Users.u.Roles[0])",
    ),
    "user twice": (
        manifest(Users={"u": {"Certificate": USER}, "v": {"Certificate": USER}}),
        "manifest contains the same certificate for users u and v (at Users.v.Certificate)",
    ),
    "role package": (
        roles(ResourceType="Packages", ResourceNames=["x"]),
        "role r: resource x of type Packages is not defined in manifest (at Roles.r.ResourceNames[0])",
    ),
    "role secret": (
        roles(ResourceType="Secrets", ResourceNames=["x"]),
        "role r: resource x of type Secrets is not defined in manifest (at Roles.r.ResourceNames[0])",
    ),
    "role action": (
        roles(ResourceType="Packages", Actions=["ReadSecret"]),
        "unknown action: ReadSecret for type Packages in role: r (at Roles.r.Actions[0])",
    ),
    "role write": (
        roles(ResourceType="Secrets", ResourceNames=["own"], Actions=["writesecret"]),
        "manifest specifies write permission for role r and secret own, but secret is not user-defined"
        " (at Roles.r.ResourceNames[0])",
    ),
    "role read": (
        roles(ResourceType="Secrets", ResourceNames=["own"], Actions=["ReadSecret"]),
        "manifest specifies read permission for role r and per-marble-unique secret own (at Roles.r.ResourceNames[0])",
    ),
    "role names": (
        roles(ResourceType="Manifest", ResourceNames=["x"], Actions=["UpdateManifest"]),
        "role r: resource names are not allowed for type Manifest (at Roles.r.ResourceNames)",
    ),
    "role type": (
        roles(ResourceType="secrets", ResourceNames=["a", "b"], Actions=["c"]),
        "unrecognized resource type: {secrets [a b] [c]} for role: r (at Roles.r.ResourceType)",
    ),
    "seal": (manifest(Config={"SealMode": "x"}), "unknown seal mode: x (at Config.SealMode)"),
    "gate": (manifest(Config={"FeatureGates": ["x"]}), "unknown feature gate: x (at Config.FeatureGates[0])"),
    "updaters": (
        manifest(Config={"UpdateThreshold": 1}),
        "not enough users with manifest update permissions (0) to meet the threshold of 1 (at Config.UpdateThreshold)",
    ),
    "keys": (
        manifest(Config={"RecoveryThreshold": 2}, RecoveryKeys={"a": "x"}),
        "not enough recovery keys (1) defined to meet the recovery threshold of 2 (at Config.RecoveryThreshold)",
    ),
    "threshold": (
        manifest(Config={"RecoveryThreshold": 1}, RecoveryKeys={"a": "x"}),
        "invalid recovery threshold: if set, threshold must be at least 2 (at Config.RecoveryThreshold)",
    ),
}


@pytest.mark.parametrize("name", MARBLERUN)
def test_what_marblerun_refuses_is_refused_with_its_message(name: str) -> None:
    document, message = MARBLERUN[name]
    assert problems(document)[0] == message


def test_a_certificate_of_a_version_that_does_not_exist_is_refused() -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert(USER))
    der[der.index(b"\xa0\x03\x02\x01\x02") + 4] = 0x66
    (problem,) = problems(manifest(Users={"u": {"Certificate": ssl.DER_cert_to_PEM_cert(bytes(der))}}))
    assert "102 is not a valid X509 version" in problem


def test_an_unreadable_user_certificate_is_refused() -> None:
    (problem,) = problems(manifest(Users={"u": {"Certificate": "no PEM"}}))
    assert problem.startswith("received invalid certificate for user u: not a PEM certificate")


TDX = {"MRTD": "cd" * 48}
IN = {"Port": "80"}
OUT = {"Addr": "db", "Port": "80"}
TWO_TAGS = {"web": {"Package": "p", "TLS": ["t", "u"]}, "db": {"Package": "vm"}}
OURS = {
    "hex": (package(UniqueID="xy" * 32), "not hexadecimal: want 64 hex digits (at Packages.p.UniqueID)"),
    "length": (package(UniqueID="ab" * 31), "wrong length: 31 bytes, want 32 (64 hex digits) (at Packages.p.UniqueID)"),
    "tdx length": (package(TDX=TDX | {"RTMR3": "00"}), "wrong length: 1 bytes, want 48 (96 hex digits)"),
    "tdx without mrtd": (package(TDX={"RTMR1": "00" * 48}), "manifest misses value for MRTD in package p"),
    "snp without measurement": (package(SNP={}), "manifest misses value for Measurement in package p"),
    "snp length": (package(SNP={"Measurement": "00" * 48, "HostData": "00" * 31}), "wrong length: 31 bytes, want 32"),
    "port": (tls(Incoming=[{"Port": "080"}]), "invalid port '080'"),
    "port range": (tls(Outgoing=[{"Addr": "db", "Port": "65536"}]), "invalid port '65536'"),
    "addr": (tls(Outgoing=[{"Addr": "../x", "Port": "1"}]), "invalid address '../x'"),
    "upstream": (tls(Incoming=[IN | {"Upstream": "/x"}]), "invalid address '/x': want unix:<path>"),
    "upstream tcp under sgx": (
        tls(Incoming=[IN | {"Upstream": "tcp:127.0.0.1:81"}]),
        "Upstream tcp:127.0.0.1:81 is refused for Marble web: its package p runs under SGX, where every TCP byte is "
        "visible to the host, loopback included; use unix:<path> (at TLS.t.Incoming[0].Upstream)",
    ),
    "listen tcp under sgx": (
        tls(Outgoing=[OUT | {"Listen": "tcp:127.0.0.1:81"}]),
        "Listen tcp:127.0.0.1:81 is refused for Marble web",
    ),
    "peers": (
        tls(Incoming=[IN | {"Peers": ["db", "x"]}]),
        "peer 'x' is neither a Marble type nor a gateway of this manifest (at TLS.t.Incoming[0].Peers[1])",
    ),
    "no peers": (tls(Incoming=[IN | {"Peers": []}]), "Peers is empty, so nobody could connect"),
    "peers without clients": (
        tls(Incoming=[IN | {"Peers": ["db"], "Cert": "s", "DisableClientAuth": True}])
        | {"Secrets": {"s": {"Type": "cert-ed25519", "Shared": True}}},
        "Peers needs client certificates, but DisableClientAuth asks for none (at TLS.t.Incoming[0].Peers)",
    ),
    "peer": (tls(Outgoing=[OUT | {"Peer": "x"}]), "peer 'x' is not a Marble type of this manifest"),
    "contradiction": (
        tls(Outgoing=[OUT | {"Peer": "web"}]),
        "Addr 'db' and Peer 'web' are different Marble types: the peer could never be right (at TLS.t.Outgoing[0])",
    ),
    "same port": (
        manifest(Marbles=TWO_TAGS, TLS={"t": {"Incoming": [IN]}, "u": {"Incoming": [IN | {"Peers": ["db"]}]}}),
        "port 80 of Marble web is defined differently by t (at TLS.u.Incoming[0])",
    ),
    "same listen": (
        tls(Outgoing=[OUT | {"Listen": "unix:x"}, OUT | {"Port": "81", "Listen": "unix:x"}]),
        "Marble web listens on unix:x for another peer already (at TLS.t.Outgoing[1].Listen)",
    ),
    "short life": (manifest(Mesh={"CertificateLifetime": "59s"}), "certificate lifetime 59s is out of range"),
    "short offline start": (manifest(Mesh={"OfflineStart": "59s"}), "offline start 59s is out of range"),
    "long offline start": (manifest(Mesh={"OfflineStart": "721h"}), "offline start 721h is out of range"),
    "long life": (manifest(Mesh={"CertificateLifetime": "721h"}), "certificate lifetime 721h is out of range"),
    "no duration": (
        manifest(Mesh={"CertificateLifetime": "1 day"}),
        'invalid duration \'1 day\': want for example "24h", "1h30m" or "90s" (at Mesh.CertificateLifetime)',
    ),
    "rsa": (
        secrets(s={"Type": "cert-rsa", "Size": 512}),
        "invalid secret size for cert-rsa secret s: unsupported size 512",
    ),
    "time": (secrets(s={"Type": "cert-rsa", "Size": 2048, "Cert": {"NotAfter": "soon"}}), "invalid time 'soon'"),
    "type": (manifest(Marbles={"a\n": {"Package": "p"}}), r"Marble type 'a\n' is not a name"),
    "variable": (
        manifest(Marbles={"web": {"Package": "p", "Parameters": {"Env": {"A=B": ""}}}}),
        "'A=B' is no name of an environment variable",
    ),
    "argument": (
        manifest(Marbles={"web": {"Package": "p", "Parameters": {"Argv": ["a\0"]}}}),
        "argument contains null bytes (at Marbles.web.Parameters.Argv[0])",
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_what_we_refuse_is_refused_with_a_reason(name: str) -> None:
    document, message = OURS[name]
    assert problems(document)[0].startswith(message)


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        ("", "not a PEM certificate"),
        (certificate(ca=True), "is a CA certificate"),
        (certificate(ca=None, cert_sign=True), "is a CA certificate"),
        (certificate(uri=None), "has no URI or DNS name"),
        (certificate(uri="spiffe://mesh/marble/web/1"), "claims the identity"),
        (certificate(uri="SPIFFE://mesh/coordinator"), "claims the identity"),
        ("x" * 100_000, "certificate has 100000 characters"),
    ],
    ids=["none", "ca", "cert sign", "nameless", "marble", "coordinator", "long"],
)
def test_a_gateway_s_certificate_can_stand_for_nobody_else(pem: str, reason: str) -> None:
    (problem,) = problems(manifest(Mesh={"Gateways": {"edge": {"Certificate": pem}}}))
    assert problem.startswith(f"certificate of gateway edge: {reason}")
    assert problem.endswith("(at Mesh.Gateways.edge.Certificate)")


def test_a_gateway_is_one_name_and_one_certificate() -> None:
    gateways = {"web": {"Certificate": USER}, "other": {"Certificate": USER + "\n"}}
    assert [problem.split(":")[0] for problem in problems(manifest(Mesh={"Gateways": gateways}))] == [
        "'web' is a Marble type too",
        "gateways 'web' and 'other' have the same certificate (at Mesh.Gateways.other.Certificate)",
    ]


def test_all_problems_are_found_in_one_run() -> None:
    wrong = manifest(Packages={"p": {"UniqueID": "x"}}, Marbles={"web": {"Package": "q"}}, Config={"SealMode": "x"})
    assert len(problems(wrong)) == 3


def test_the_list_of_problems_is_bounded() -> None:
    found = problems(manifest(Marbles={f"m{number}": {"Package": "x"} for number in range(1000)}))
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == "and more: only the first 50 problems are shown"


def test_connections_of_all_marbles_together_are_bounded() -> None:
    ports = [{"Port": str(port)} for port in range(1, 1002)]
    marbles = {f"m{number}": {"Package": "p", "TLS": ["t"]} for number in range(100)}
    (problem,) = problems(manifest(Marbles=marbles, TLS={"t": {"Incoming": ports}}))
    assert problem == "the Marbles have 100100 connections together, at most 100000 are allowed (at TLS)"


def test_a_message_cannot_steer_a_terminal() -> None:
    (problem,) = problems(manifest(Marbles={"web": {"Package": "\x1b[2J" + "x" * 10_000}}))
    assert problem.isprintable()
    assert len(problem) < 600


def test_a_debug_package_is_only_warned_about() -> None:
    result = parse(raw(package(Debug=True)))
    assert [warning.path for warning in result.warnings] == [
        "Packages.p.SignerID",
        "Packages.p.ProductID",
        "Packages.p.SecurityVersion",
        "Packages.p.Debug",
    ]
    assert result.packages["p"].is_sgx


def test_doubtful_measurements_are_warned_about() -> None:
    result = parse(raw(package(TDX=TDX, AcceptedTCBStatuses=["uptodate"])))
    assert [warning.path for warning in result.warnings] == ["Packages.p.TDX", "Packages.p.AcceptedTCBStatuses[0]"]
    assert not result.packages["p"].is_sgx


def test_packages_that_no_marble_names_may_be_incomplete() -> None:
    assert problems(manifest(Packages=manifest()["Packages"] | {"later": {}})) == []


def test_tcp_is_for_confidential_vms() -> None:
    marbles = {"web": {"Package": "p"}, "db": {"Package": "vm", "TLS": ["t"]}}
    tag = {
        "Incoming": [IN | {"Upstream": "tcp:localhost:81", "Peers": ["web", "edge"]}],
        "Outgoing": [{"Addr": "example.org", "Port": "443", "Listen": "unix:out.sock", "Peer": "web"}],
    }
    gateways = {"edge": {"Certificate": USER}}
    result = parse(raw(manifest(Marbles=marbles, TLS={"t": tag}, Mesh={"Gateways": gateways})))
    assert result.tls["t"].incoming[0].upstream == TcpAddress("127.0.0.1", 81)
    assert result.tls["t"].incoming[0].peers == ("web", "edge")
    assert result.tls["t"].outgoing[0].listen == UnixAddress("out.sock")


def test_tags_that_agree_may_overlap() -> None:
    assert problems(manifest(Marbles=TWO_TAGS, TLS={"t": {"Incoming": [IN]}, "u": {"Incoming": [IN]}})) == []


def test_settings_are_read() -> None:
    role = {"ResourceType": "Manifest", "Actions": ["updatemanifest"]}
    result = parse(
        raw(
            manifest(
                Config={"SealMode": "Disabled", "FeatureGates": ["signquoteendpoint"], "UpdateThreshold": 1},
                Users={"u": {"Certificate": USER, "Roles": ["r"]}},
                Roles={"r": role},
                Mesh={"CertificateLifetime": "1h", "OfflineStart": "90m"},
            )
        )
    )
    assert result.config.seal_mode is SealMode.DISABLED
    assert result.config.feature_gates == {FeatureGate.SIGN_QUOTE_ENDPOINT}
    assert result.roles["r"].actions == ("UpdateManifest",)
    assert result.mesh.certificate_lifetime == timedelta(hours=1)
    assert result.mesh.offline_start == timedelta(minutes=90)


def test_a_certificate_that_go_wrote_out_is_read() -> None:
    cert = {
        "Subject": {"CommonName": "x"},
        "NotAfter": "0001-01-01T00:00:00Z",
        "IPAddresses": ["::1", ""],
        "URIs": None,
    }
    secret = {"Type": "cert-rsa", "Size": 2048, "ValidFor": 7, "Cert": cert | {"Version": 0, "PublicKey": None}}
    template = parse(raw(secrets(s=secret | {"Private": None, "Public": None}))).secrets["s"].cert
    assert template is not None
    assert template.not_after is None
    assert [str(address) for address in template.ip_addresses] == ["::1"]
    assert template.raw["Version"] == 0
