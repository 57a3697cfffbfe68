# SPDX-License-Identifier: Apache-2.0
"""Bootstrap configurations for stock Envoys in and around a mesh. Pure: values in, Envoy's JSON form out.

`parts` are the messages that they are made of, `bootstrap` the four places where an Envoy can stand.
"""

from __future__ import annotations

from marblemesh.envoy.bootstrap import Edge, InMarble, Originator, Terminator
from marblemesh.envoy.parts import Config, Peers, Tcp, Unix

__all__ = ["Config", "Edge", "InMarble", "Originator", "Peers", "Tcp", "Terminator", "Unix"]
