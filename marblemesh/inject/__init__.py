# SPDX-License-Identifier: Apache-2.0
"""What a Kubernetes pod needs to run a Marble, put into manifests and taken out again: dicts in and out, no I/O."""
