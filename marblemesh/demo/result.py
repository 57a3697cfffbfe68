# SPDX-License-Identifier: Apache-2.0
"""What the demo reports at its end, for people and (`-o json`) for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from marblemesh.demo.errors import CheckFailedError
from marblemesh.demo.refusal import Probe


@dataclass(frozen=True, slots=True)
class Leader:
    """One line of the leaderboard."""

    shortcode: str
    unicode: str
    votes: int


@dataclass(frozen=True, slots=True)
class VoteReport:
    """What vote-bot says at its end: votes that were answered, votes that failed, and the board as web shows it."""

    votes: int
    failures: int
    errors: tuple[str, ...]
    total: int
    leaders: tuple[Leader, ...]
    seconds: float

    def check(self, wanted: int) -> None:
        """Raises CheckFailedError unless every vote was answered and counted once."""
        if self.failures:
            raise CheckFailedError(f"{self.failures} requests of vote-bot failed: {'; '.join(self.errors)}")
        if self.votes != wanted:
            raise CheckFailedError(f"vote-bot cast {self.votes} votes, expected {wanted}")
        counted = sum(leader.votes for leader in self.leaders)
        if not self.total == counted == wanted:
            raise CheckFailedError(
                f"voting counted {self.total} votes, the leaderboard adds up to {counted}, expected {wanted}"
            )


@dataclass(frozen=True, slots=True)
class MarbleReport:
    """An attested Marble, as its current certificate tells. Times are ISO 8601, `measurement` is hex."""

    type: str
    uuid: str
    spiffe_id: str
    measurement: str
    simulated: bool
    not_before: str
    not_after: str


@dataclass(slots=True)
class Result:
    """The whole run. `durations` in seconds; `prometheus` names its URL, or why there is none."""

    ok: bool = False
    error: str | None = None
    log_lines: tuple[str, ...] = ()
    votes: int = 0
    failures: int = 0
    counted: int = 0
    leaderboard: tuple[Leader, ...] = ()
    rotations: int = 0
    envoy_certificate_updates: int = 0
    refusals: tuple[Probe, ...] = ()
    marbles: tuple[MarbleReport, ...] = ()
    manifest_fingerprint: str = ""
    envoy: Mapping[str, str] = field(default_factory=dict)
    prometheus: Mapping[str, object] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    logs: str = ""

    def add_votes(self, report: VoteReport) -> None:
        self.votes, self.failures, self.counted = report.votes, report.failures, report.total
        self.leaderboard = report.leaders
        self.durations["votes"] = report.seconds

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def parse_vote_report(reply: Mapping[str, object]) -> VoteReport:
    """vote-bot's last line. Raises CheckFailedError when it is not one (the bot was ended before it had a board)."""
    board = reply.get("leaderboard")
    match reply:
        case {
            "votes": int(votes),
            "failures": int(failures),
            "errors": list(errors),
            "seconds": int() | float() as took,
        }:
            total, leaders = _leaderboard(board)
            return VoteReport(votes, failures, tuple(map(str, errors)), total, leaders, float(took))
    raise CheckFailedError(f"vote-bot's last word is no report: {str(reply)[:200]}")


def _leaderboard(board: object) -> tuple[int, tuple[Leader, ...]]:
    match board:
        case {"total": int(total), "leaders": list(leaders)}:
            return total, tuple(_leader(entry) for entry in leaders)
        case None:  # the bot could not fetch it, and says so among its errors
            return 0, ()
    raise CheckFailedError(f"the leaderboard is none: {str(board)[:200]}")


def _leader(entry: object) -> Leader:
    match entry:
        case {"shortcode": str(code), "unicode": str(char), "votes": int(votes)}:
            return Leader(code, char, votes)
    raise CheckFailedError(f"a line of the leaderboard is none: {str(entry)[:200]}")


def summary(result: Result) -> Sequence[str]:
    """The end of a good run, for people."""
    leaders = "  ".join(f"{leader.unicode} {leader.votes}" for leader in result.leaderboard[:5])
    took, updates = result.durations.get("votes", 0.0), result.envoy_certificate_updates
    lines = [f"{result.votes} votes sent, {result.counted} counted, {result.failures} failed, in {took:.1f} s"]
    if leaders:
        lines.append(f"leaderboard: {leaders}")
    if result.rotations:
        lines.append(
            f"{result.rotations} certificate rotations meanwhile, the Envoy inside web took {updates} over SDS"
        )
    if result.refusals:
        lines.append(f"{len(result.refusals)} strangers at the doors, none got a byte of an app")
    return lines
