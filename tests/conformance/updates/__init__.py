# SPDX-License-Identifier: Apache-2.0
"""Updates of the manifest, as users and Marbles meet them; one test per fact, over real TLS."""
