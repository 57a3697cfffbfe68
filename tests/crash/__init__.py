# SPDX-License-Identifier: Apache-2.0
"""Ending the Coordinator's store at every operation and at any instant: it must find the old state or the new one."""
