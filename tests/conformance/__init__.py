# SPDX-License-Identifier: Apache-2.0
"""Section by section: the facts that make this Coordinator one that MarbleRun's clients and Marbles can use."""
