# SPDX-License-Identifier: Apache-2.0
"""Recovery, from the shares that owners get to the Marbles that go on; one test per fact, over real TLS."""
