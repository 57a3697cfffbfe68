# SPDX-License-Identifier: Apache-2.0
"""Remote attestation: prove what runs here, and find out what runs there.

The data flows one way, and each stage is a type::

    issuer ──► Evidence ──verify──► Claims ──check_report_data, appraise──► accepted, or an error that says why not

Values and rules, without I/O:

* :mod:`.evidence`, :mod:`.quote`: the bytes of a DCAP quote, and their layout;
* :mod:`.claims`, :mod:`.policy`, :mod:`.report_data`: what was proven, what is wanted, and what it is bound to;
* :mod:`.collateral`, :mod:`.ratchet`: Intel's signed documents that a quote is judged by, never older ones than before;
* :mod:`.verify`, :mod:`.chain`, :mod:`.body`: the cryptography (``dcap-qvl``, and what it leaves to its caller);
* :mod:`.era_config`: MarbleRun's policy file for a Coordinator;
* :mod:`.errors`: one class per kind of refusal.

Adapters:

* :mod:`.issue_gramine`, :mod:`.issue_tsm`, :mod:`.select`: where quotes come from;
* :mod:`.simulated`: a whole DCAP platform with a root of its own, for development and tests;
* :class:`.collateral.DirectoryCollateral`, :mod:`.pccs`: where collateral comes from;
* :mod:`.appraiser`, :mod:`.coordinator`: all of it in the right order, for a Marble's quote and for a Coordinator's.
"""
