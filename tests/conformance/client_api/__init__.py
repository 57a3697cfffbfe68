# SPDX-License-Identifier: Apache-2.0
"""The client API on the wire, one test per fact."""
