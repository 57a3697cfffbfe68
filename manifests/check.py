# SPDX-License-Identifier: Apache-2.0
"""The rules between members, over the wire shape, each with MarbleRun's own message where it has one.

They look at the file's text and not at decoded values, so that they and the decoding (convert.py) are independent: a
bad hex digit does not hide a missing package, nor cause a second message. Packages and Marbles come first, as tools
that know MarbleRun look at the first message.
"""

from __future__ import annotations

from manifests.checks_access import check_config, check_roles, check_users
from manifests.checks_connections import check_connections
from manifests.checks_mesh import check_mesh
from manifests.checks_packages import check_marbles, check_packages
from manifests.checks_secrets import check_secrets
from manifests.checks_tls import check_tags
from manifests.places import Findings
from manifests.wire import ManifestWire


def check(document: ManifestWire, found: Findings) -> None:
    """Report everything that is wrong or doubtful between the members of `document`."""
    check_packages(document, found)
    check_marbles(document, found)
    check_tags(document, found)
    check_connections(document, found)
    check_secrets(document, found)
    check_users(document, found)
    check_roles(document, found)
    check_config(document, found)
    check_mesh(document, found)
