# SPDX-License-Identifier: Apache-2.0
"""The SDK's guide is a program that works: its blocks are run, in order, against a Coordinator."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

from sds.attestation.simulated import SIMULATED_SIGNER
from tests.kit.fake_coordinator import FakeCoordinator
from tests.kit.fake_features import OAEP
from tests.kit.users import key_pem, recovery_key, user

GUIDE = Path(__file__).resolve().parents[4] / "docs" / "sdk.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MANIFEST = b'{"Packages": {}, "Marbles": {}}'


async def run_guide(fake: FakeCoordinator, folder: Path) -> list[str]:
    """What the guide's program prints."""
    program = folder / "guide.py"
    program.write_text("\n".join(BLOCK.findall(GUIDE.read_text())))
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, fake.address,
        cwd=folder, env={"XDG_STATE_HOME": str(folder / "state")},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    return out.decode().splitlines()


def prepare(fake: FakeCoordinator) -> Path:
    """The folder that the guide's reader has."""
    folder = fake.directory / "guide"
    (folder / "state" / "marblemesh").mkdir(parents=True)
    (folder / "state" / "marblemesh" / "simulated-platform").symlink_to(fake.directory / "platform")
    era = {"SignerID": SIMULATED_SIGNER.hex(), "ProductID": 3, "SecurityVersion": 3}
    files = {"era-config.json": json.dumps(era).encode(), "manifest.json": MANIFEST, "manifest-2.json": MANIFEST + b" "}
    files |= {"alice.pem": user("alice").certificate, "alice.key": user("alice").key}
    files |= {
        "recovery.key": key_pem(recovery_key()),
        "recovery.bin": recovery_key().public_key().encrypt(bytes(32), OAEP),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


async def test_the_guide_s_program_works(tmp_path: Path) -> None:
    fake = FakeCoordinator(tmp_path)
    fake.users.certificates = {name: user(name).der for name in ("alice", "bob")}
    fake.users.required = 2
    fake.users.secrets = {"api-key": {"Type": "plain", "Size": 0, "ValidFor": 0, "Private": "eHg=", "Public": "eHg="}}
    folder = prepare(fake)
    async with fake.serving():
        printed = await run_guide(fake, folder)
        assert printed[0] == "recovery secrets for: nobody"
        assert printed[1].startswith("manifest in force: ")
        assert printed[2:] == [
            "api-key has 2 bytes",
            "waiting for bob",
            "withdrawn: Update successfully cancelled",
            "0 entries in the log",
        ]
        fake.recovery.needed, fake.recovery.keys = True, [recovery_key().public_key()]
        assert await run_guide(fake, folder) == ["Recovery successful."]


def test_the_guide_names_every_call_and_error() -> None:
    import marblemesh.client as sdk

    text = GUIDE.read_text()
    calls = [name for name in vars(sdk.Client) if not name.startswith("_") and name not in ("root", "statement")]
    errors = [
        name
        for name in sdk.__all__
        if isinstance(getattr(sdk, name), type) and issubclass(getattr(sdk, name), Exception)
    ]
    assert [name for name in (*calls, *errors) if f"`{name}" not in text and f"{name}(" not in text] == []
