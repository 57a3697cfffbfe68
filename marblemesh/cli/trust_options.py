# SPDX-License-Identifier: Apache-2.0
"""The flags that say whom to trust, the same on every verb that talks to a Coordinator; MarbleRun's names where it has
them. A verb asks for them by a parameter `trust: TrustOptions` and the decorator `with_trust`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from marblemesh.cli.injected import injected
from marblemesh.client import AddressError
from marblemesh.client.transport import check_address
from sds.attestation.policy import ACCEPTABLE_TCB_STATUSES
from sds.attestation.report_data import MAX_NONCE


def _address(text: str) -> str:
    try:
        return check_address(text)
    except AddressError as error:
        raise typer.BadParameter(str(error)) from None


Address = Annotated[
    str, typer.Argument(metavar="ADDRESS", help="The Coordinator's client API, host:port.", callback=_address)
]

_TRUST = "Whom to trust"
_EVIDENCE = "How to check the quote"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustOptions:
    """The flags, and the environment that their defaults depend on."""

    environment: Mapping[str, str]
    coordinator_cert: Path | None = None
    era_config: Path | None = None
    insecure: bool = False
    accepted_tcb_statuses: tuple[str, ...] = ()
    accepted_advisories: tuple[str, ...] = ()
    nonce: bytes | None = None
    save_sgx_quote: Path | None = None
    simulation: bool = False
    simulated_platform: Path | None = None
    pccs_url: str | None = None
    collateral_dir: Path | None = None


_OPTIONS: dict[str, tuple[Any, Any]] = {
    "coordinator_cert": (
        Annotated[
            Path | None,
            typer.Option(
                help="Where the Coordinator's certificates are kept once it was attested. "
                "Default: marblerun/coordinator-cert.pem in $XDG_CONFIG_HOME or ~/.config.",
                metavar="FILE",
                rich_help_panel=_TRUST,
            ),
        ],
        None,
    ),
    "era_config": (
        Annotated[
            Path | None,
            typer.Option(
                help="JSON with the measurements that the Coordinator must have. Default: era-config.json here.",
                metavar="FILE",
                rich_help_panel=_TRUST,
            ),
        ],
        None,
    ),
    "insecure": (
        Annotated[
            bool,
            typer.Option(
                "--insecure",
                "-i",
                help="Do not attest the Coordinator: believe whoever answers. Only to try things out.",
                rich_help_panel=_TRUST,
            ),
        ],
        False,
    ),
    "simulation": (
        Annotated[
            bool,
            typer.Option(
                "--simulation",
                help="Accept quotes of this machine's simulated platform. Proves nothing about hardware.",
                rich_help_panel=_TRUST,
            ),
        ],
        False,
    ),
    "simulated_platform": (
        Annotated[
            Path | None,
            typer.Option(
                help="The simulated platform's directory, if not the default; needs --simulation. "
                "[EDG_SIMULATED_PLATFORM_DIR]",
                metavar="DIR",
                rich_help_panel=_TRUST,
            ),
        ],
        None,
    ),
    "accepted_tcb_statuses": (
        Annotated[
            list[str],
            typer.Option(
                help="TCB statuses to accept, separated by commas. Default: UpToDate,SWHardeningNeeded.",
                metavar="LIST",
                rich_help_panel=_EVIDENCE,
            ),
        ],
        (),
    ),
    "accepted_advisories": (
        Annotated[
            list[str],
            typer.Option(
                help="The only Intel advisories that may be open (INTEL-SA-…), separated by commas.",
                metavar="LIST",
                rich_help_panel=_EVIDENCE,
            ),
        ],
        (),
    ),
    "nonce": (
        Annotated[
            str | None,
            typer.Option(help="Text that makes the quote fresh. Default: random.", rich_help_panel=_EVIDENCE),
        ],
        None,
    ),
    "save_sgx_quote": (
        Annotated[
            Path | None,
            typer.Option(help="Write the Coordinator's quote to a file.", metavar="FILE", rich_help_panel=_EVIDENCE),
        ],
        None,
    ),
    "pccs_url": (
        Annotated[
            str | None,
            typer.Option(
                help="Where collateral comes from. Default: Intel's own service.",
                metavar="URL",
                rich_help_panel=_EVIDENCE,
            ),
        ],
        None,
    ),
    "collateral_dir": (
        Annotated[
            Path | None,
            typer.Option(
                help="Take collateral from files in this directory instead.", metavar="DIR", rich_help_panel=_EVIDENCE
            ),
        ],
        None,
    ),
}


def with_trust(*, insecure: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the trust flags; `insecure` only where leaving attestation out makes any sense."""
    options = {name: option for name, option in _OPTIONS.items() if insecure or name != "insecure"}
    decorate: Callable[[Callable[..., None]], Callable[..., None]] = injected("trust", options, _checked)
    return decorate


def _checked(ctx: typer.Context, values: dict[str, Any]) -> TrustOptions:
    """The flags as values; what contradicts itself is wrong usage, found before anything is done."""
    statuses = _listed(values.pop("accepted_tcb_statuses"))
    if unknown := sorted(set(statuses) - ACCEPTABLE_TCB_STATUSES):
        known = ", ".join(sorted(ACCEPTABLE_TCB_STATUSES))
        raise typer.BadParameter(f"--accepted-tcb-statuses: {unknown[0]!r} cannot be accepted, known are {known}")
    # MarbleRun takes the text's bytes as they are.
    nonce = (values.pop("nonce") or "").encode("utf-8", "surrogateescape") or None
    if nonce is not None and len(nonce) > MAX_NONCE:
        raise typer.BadParameter(f"--nonce: {len(nonce)} bytes, at most {MAX_NONCE} are allowed")
    if values["simulated_platform"] is not None and not values["simulation"]:
        raise typer.BadParameter("--simulated-platform needs --simulation")
    return TrustOptions(
        environment=ctx.find_root().obj,
        accepted_tcb_statuses=statuses,
        accepted_advisories=_listed(values.pop("accepted_advisories")),
        nonce=nonce,
        **values,
    )


def _listed(values: list[str] | None) -> tuple[str, ...]:
    """`["a,b", "c"]` → `("a", "b", "c")`, as MarbleRun's flags are given once or several times."""
    return tuple(item.strip() for value in values or () for item in value.split(",") if item.strip())
