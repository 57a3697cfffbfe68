# SPDX-License-Identifier: Apache-2.0
"""Gramine manifests for a given virtual environment and program: which files an enclave measures, and what is around.

probe.py      runs in the environment's own Python: what is loaded, and what could be
libraries.py  the shared libraries of executables and extension modules, as the dynamic loader finds them
graph.py      both together: `FileGraph`, the files of one program
plan.py       what to render: files, mounts, variables, arguments; pure
render.py     template and plan to text; pure
"""

from marblemesh.gramine.errors import GramineError
from marblemesh.gramine.graph import FileGraph, Program, walk
from marblemesh.gramine.plan import Kind, Plan, Settings, make_plan
from marblemesh.gramine.render import render

__all__ = ["FileGraph", "GramineError", "Kind", "Plan", "Program", "Settings", "make_plan", "render", "walk"]
