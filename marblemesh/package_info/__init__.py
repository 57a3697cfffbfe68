# SPDX-License-Identifier: Apache-2.0
"""What a signed SGX enclave says about itself: the values that a manifest's Package names. Files only, no hardware.

sigstruct.py   the 1808 bytes of a SIGSTRUCT, checked and read
elf.py         the section of an ELF file that holds one
read.py        a file of either kind, or an Occlum instance's directory
errors.py      `PackageInfoError`
"""

from marblemesh.package_info.errors import PackageInfoError
from marblemesh.package_info.read import read_package
from marblemesh.package_info.sigstruct import Sigstruct, parse_sigstruct

__all__ = ["PackageInfoError", "Sigstruct", "parse_sigstruct", "read_package"]
