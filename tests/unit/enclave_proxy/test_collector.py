# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

CODE = """
import gc
from enclave_proxy.collector import spare_what_is_loaded
loaded = len(gc.get_objects())
spare_what_is_loaded()
print(gc.get_freeze_count() > loaded * 0.9, len(gc.get_objects()) < 100)
made = []
made.append(made)
del made
print(gc.collect())
"""


def test_what_is_loaded_is_not_looked_through_again_and_what_comes_later_is_collected() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "1"]
