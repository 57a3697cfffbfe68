# SPDX-License-Identifier: Apache-2.0
"""What a setting of the worker is called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting's two names. `flag` is without its dashes."""

    env: str
    flag: str

    @property
    def names(self) -> str:
        """Both, as errors show them."""
        return f"{self.env} (--{self.flag})"
