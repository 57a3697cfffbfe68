# SPDX-License-Identifier: Apache-2.0
"""The order of events: `start` brings the mesh up, `trial` drives votes through and checks, `run` is one whole demo."""
