# SPDX-License-Identifier: Apache-2.0
"""What `cryptography` raises for an odd certificate, request or list: found by fuzzing, not all of it documented.

It reads lazily, so these come when a name or an extension is first asked for, too. Whoever reads outside bytes catches
them all and says in its own error what was being read.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

X509_ERRORS = (
    ValueError,
    TypeError,  # a bit string where a name has text
    UnsupportedAlgorithm,
    x509.InvalidVersion,  # no ValueError
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
