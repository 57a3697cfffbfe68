# SPDX-License-Identifier: Apache-2.0
"""Our private SPIFFE messages against the published ones: py-spiffe's Workload API, Envoy's SPIFFE validator."""

from __future__ import annotations

import warnings

import pytest
from google.protobuf.descriptor import Descriptor
from spiffe._proto import workload_pb2 as published

from enclave_proxy.workload_api import SERVICE
from sds.spiffe_validator import VALIDATOR, spiffe_validator_secret
from sds.wire import workload_pb2 as ours
from tests.kit.pki import other_ca, shared_ca


def fields(message: Descriptor) -> dict[int, tuple[str, int, bool, str]]:
    """By number: name, type, repeated, and the type of a message."""
    return {
        field.number: (field.name, field.type, field.is_repeated, field.message_type.name if field.message_type else "")
        for field in message.fields
    }


@pytest.mark.parametrize("name", list(ours.DESCRIPTOR.message_types_by_name))
def test_workload_messages_have_exactly_the_published_fields(name: str) -> None:
    theirs = published.DESCRIPTOR.message_types_by_name[name]
    mine = ours.DESCRIPTOR.message_types_by_name[name]
    assert fields(mine) == fields(theirs)
    for entry in mine.nested_types:
        assert fields(entry) == fields(theirs.nested_types_by_name[entry.name])


def test_the_service_has_the_published_path_and_methods() -> None:
    service = published.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
    assert f"/{service.full_name}" == SERVICE


def test_envoys_own_definitions_read_the_validator() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generated code, not ours to warn about
        from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls
    bundles = {shared_ca().trust_domain: shared_ca().bundle, other_ca().trust_domain: other_ca().bundle}
    secret = tls.Secret.parse(spiffe_validator_secret("ALL", bundles).body)
    assert secret.validation_context is not None
    custom = secret.validation_context.custom_validator_config
    assert custom is not None
    assert (secret.name, custom.name) == ("ALL", VALIDATOR)
    assert custom.typed_config is not None
    config = custom.typed_config.unpack()
    assert isinstance(config, tls.SpiffeCertValidatorConfig)
    assert {d.name: d.trust_bundle.inline_bytes for d in config.trust_domains} == {  # type: ignore[union-attr]
        domain: bundle.pem for domain, bundle in bundles.items()
    }
