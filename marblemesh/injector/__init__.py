# SPDX-License-Identifier: Apache-2.0
"""`marblemesh injector`: the admission webhook that makes Marbles of labelled pods when they are created.

    __main__.py     the command line
    review.py       AdmissionReview in, AdmissionReview out: bytes to bytes, no I/O
    server.py       HTTPS around it: limits, deadlines, `/healthz`, `/metrics`
    certificate.py  the server's certificate, read again when its files change

What a pod gets is `marblemesh.inject`, the same as on the command line.
"""
