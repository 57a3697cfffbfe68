# SPDX-License-Identifier: Apache-2.0
"""The names of the local SDS, and what stands behind each."""

from __future__ import annotations

import pytest
from cryptography import x509

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.local_secrets import is_own_name, local_view
from sds.ca import pem_of
from sds.keys import PrivateKey
from sds.material import Identity, MaterialError, TrustBundle
from sds.resources import SECRET, read_secret
from sds.spiffe_validator import CONFIG, VALIDATOR, spiffe_validator_secret
from sds.wire import secret_pb2
from tests.kit.pki import marble, other_ca, shared_ca

CA = shared_ca()
WEB = marble(CA)


def credentials(identity: Identity = WEB) -> Credentials:
    return Credentials(identity, CA.bundle, TrustBundle(CA.chain_pem))


def test_identity_and_bundle_stand_under_every_name_that_envoy_users_of_spire_and_istio_write() -> None:
    secrets = local_view(credentials(), {})[SECRET]
    domain = f"spiffe://{CA.trust_domain}"
    assert set(secrets) == {"default", str(WEB.spiffe_id), "ROOTCA", domain, "ALL"}
    for name in ("default", str(WEB.spiffe_id)):
        assert read_secret(secrets[name].body) == (name, WEB)
    for name in ("ROOTCA", domain):
        assert read_secret(secrets[name].body) == (name, CA.bundle)


def test_all_is_envoys_spiffe_validator_with_the_bare_name_of_the_trust_domain() -> None:
    secret = secret_pb2.Secret.FromString(local_view(credentials(), {})[SECRET]["ALL"].body)
    validator = secret.validation_context.custom_validator_config
    assert (secret.name, validator.name, validator.typed_config.type_url) == ("ALL", VALIDATOR, CONFIG)
    (domain,) = secret_pb2.SpiffeCertValidatorConfig.FromString(validator.typed_config.value).trust_domains
    assert (domain.name, domain.trust_bundle.inline_bytes) == (CA.trust_domain, CA.bundle.pem)


def test_a_validator_that_would_believe_nobody_is_not_made() -> None:
    with pytest.raises(MaterialError, match="without a trust domain"):
        spiffe_validator_secret("ALL", {})


def test_certificates_of_the_manifest_stand_under_their_own_names_and_never_under_one_of_ours() -> None:
    other = marble(other_ca())
    secrets = local_view(credentials(), {"shop": other, "ALL": other, str(other.spiffe_id): other})[SECRET]
    assert read_secret(secrets["shop"].body) == ("shop", other)
    assert str(other.spiffe_id) not in secrets
    assert other.key.pem not in secrets["ALL"].body


@pytest.mark.parametrize("name", ["default", "ROOTCA", "ALL", "ROOTCA|8080", "revoked|instances", "spiffe://x/y"])
def test_names_of_ours_are_known(name: str) -> None:
    assert is_own_name(name)


def test_an_identity_without_a_spiffe_id_stands_under_the_plain_names_only() -> None:
    key = PrivateKey.generate_p256()
    secrets = local_view(credentials(nameless(key)), {})[SECRET]
    assert set(secrets) == {"default", "ROOTCA"}


def nameless(key: PrivateKey) -> Identity:
    """What a MarbleRun Coordinator issues: no URI name."""
    leaf = WEB.leaf
    builder = x509.CertificateBuilder(
        leaf.issuer, leaf.subject, key.load().public_key(), 7, leaf.not_valid_before_utc, leaf.not_valid_after_utc
    )
    signed = builder.sign(CA.intermediate_key.load(), leaf.signature_hash_algorithm)  # type: ignore[arg-type]
    return Identity(pem_of(signed), key)
