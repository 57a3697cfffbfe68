# SPDX-License-Identifier: Apache-2.0
"""What may run: the Marble manifest.

    parse.py      raw bytes → `Manifest`, or `ManifestError` with every problem and its place; the one entry
    json_text.py  bounded, strict JSON: line and column of an error, depth, duplicates
    wire.py       the JSON shape (pydantic), Go's decoding rules; the JSON Schema comes from here
    convert.py    wire shape → model.py, the frozen values that everybody else uses
    check.py      the rules, by subject: checks_packages, checks_secrets, checks_access, checks_tls, checks_mesh
    schema.py     `json_schema()`; `manifest.schema.json` is its output, for editors

The package knows nothing of attestation, identities or servers: `xds_server` translates.
"""

from manifests.address import Address, TcpAddress, UnixAddress
from manifests.errors import ManifestError, ManifestSyntaxError, Problem
from manifests.model import Manifest

__all__ = ["Address", "Manifest", "ManifestError", "ManifestSyntaxError", "Problem", "TcpAddress", "UnixAddress"]
