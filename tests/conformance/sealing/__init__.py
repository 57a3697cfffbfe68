# SPDX-License-Identifier: Apache-2.0
"""What is on disk, read without our code, and what a start makes of it; one test per fact, over real TLS."""
