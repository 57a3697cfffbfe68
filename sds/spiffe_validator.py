# SPDX-License-Identifier: Apache-2.0
"""A Secret for Envoy's SPIFFE validator (`envoy.tls.cert_validator.spiffe`): trust bundles by trust domain.

Where a plain validation context asks "does the chain end in these certificates?", the validator first looks at the
trust domain in the peer's URI name and then only at that domain's bundle (X509-SVID specification, section 5). This is
what SPIRE calls `ALL`.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.any_pb2 import Any

from sds.material import MaterialError, TrustBundle
from sds.resources import SECRET, Resource, make_resource
from sds.wire import secret_pb2 as pb

VALIDATOR = "envoy.tls.cert_validator.spiffe"
CONFIG = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"


def spiffe_validator_secret(name: str, bundles: Mapping[str, TrustBundle]) -> Resource:
    """`bundles` by trust domain name, bare: with `spiffe://` in front Envoy takes it and then believes nobody.

    Raises MaterialError if there is none: a validator without trust domains lets nobody in, which nobody means.
    """
    if not bundles:
        raise MaterialError("SPIFFE validator without a trust domain, expected at least one")
    config = pb.SpiffeCertValidatorConfig(
        trust_domains=[
            pb.TrustDomain(name=domain, trust_bundle=pb.DataSource(inline_bytes=bundle.pem))
            for domain, bundle in sorted(bundles.items())
        ]
    )
    typed = Any(type_url=CONFIG, value=config.SerializeToString(deterministic=True))
    custom = pb.TypedExtensionConfig(name=VALIDATOR, typed_config=typed)
    context = pb.CertificateValidationContext(custom_validator_config=custom)
    return make_resource(SECRET, name, pb.Secret(name=name, validation_context=context), rank=0)
