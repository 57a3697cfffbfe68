# SPDX-License-Identifier: Apache-2.0
"""Commands that the guides only show, because they take a cluster, an enclave or your files: what can be known of them
here has to hold. Verbs and flags exist, and so do the files of this repository that they name."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOWN = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OURS = re.compile(r"\b(?:manifests|docs|scripts|linkerd-integration|tests|bench)/[\w./-]+")
YOURS = "manifests/kubernetes/overlays/mine"


def shown() -> list[tuple[str, str]]:
    """Page and command line, continued lines joined, comments and the prompt left out."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in SHOWN.findall(page.read_text()):
            joined = block.replace("\\\n", " ")
            lines = [line[2:].partition(" # ")[0].strip() for line in joined.splitlines() if line.startswith("$ ")]
            found += [(page.name, line) for line in lines]
    return found


COMMANDS = shown()
VERBS = [(page, line[line.index("marblemesh ") :]) for page, line in COMMANDS if re.search(r"(^|\s)marblemesh ", line)]


def test_there_are_some() -> None:
    assert len(COMMANDS) > 15
    assert len(VERBS) > 3


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_files_of_the_repository_that_a_command_names_exist(page: str, line: str) -> None:
    for path in OURS.findall(line):
        assert path == YOURS or (ROOT / path).exists(), f"{page}: {path}"


@pytest.mark.parametrize(("page", "line"), VERBS)
def test_verbs_and_flags_that_a_command_names_exist(page: str, line: str) -> None:
    words = shlex.split(re.split(r"\s(?:[|;&>]|2>)", line.replace("…", "x"))[0].partition(" -- ")[0])[1:]
    words = [word for word in words if word]
    verb = [*words[: next((i for i, word in enumerate(words) if not re.fullmatch(r"[a-z][a-z-]+", word)), len(words))]]
    command = [sys.executable, "-m", "marblemesh", *verb, "--help"]
    environment = {"COLUMNS": "200", "TERM": "dumb"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{page}: marblemesh {' '.join(verb)}: {done.stderr}"
    for flag in (word.partition("=")[0] for word in words if word.startswith("-")):
        assert flag in done.stdout, f"{page}: marblemesh {' '.join(verb)} has no {flag}"
