# SPDX-License-Identifier: Apache-2.0
"""One picture of the relay benchmark: a small bar chart for every measure, less is better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("svg")  # no display anywhere

from matplotlib import pyplot

from bench.measure import Figure

COLUMNS = 3
OURS, OTHERS = "#2b6cb0", "#a0aec0"


def plot(result: Mapping[str, Mapping[str, Mapping[str, object]]], units: Mapping[str, str], path: Path) -> Path:
    """Draw medians with their spread; returns `path`."""
    rows = -(-len(result) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(4 * COLUMNS, 2.4 * rows), layout="constrained")
    flat = list(axes.flat)
    for axis, (measure, by_peer) in zip(flat, result.items(), strict=False):
        figures = {name: entry["figure"] for name, entry in by_peer.items()}
        medians = [f.median for f in figures.values() if isinstance(f, Figure)]
        spread = [
            [f.median - f.low for f in figures.values() if isinstance(f, Figure)],
            [f.high - f.median for f in figures.values() if isinstance(f, Figure)],
        ]
        colours = [OURS if name == "marblemesh" else OTHERS for name in figures]
        axis.barh(list(figures), medians, xerr=spread, color=colours)
        axis.invert_yaxis()
        axis.set_title(f"{measure} ({units[measure]})", fontsize=9)
        axis.tick_params(labelsize=8)
    for axis in flat[len(result) :]:
        axis.set_axis_off()
    figure.savefig(path)
    pyplot.close(figure)
    return path
