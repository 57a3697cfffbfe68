# SPDX-License-Identifier: Apache-2.0
"""How a pod asks for SGX: each device plugin has resources of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_QUALIFIED = re.compile(r"(?=.{3,253}/)[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class SgxResources:
    """`limits` of every container with an enclave, as quantities; `toleration`: the key of the taint on SGX nodes."""

    toleration: str
    limits: Mapping[str, str]


def _resources(toleration: str, **more: str) -> SgxResources:
    return SgxResources(toleration, MappingProxyType(more))


INTEL = SgxResources(
    "sgx.intel.com/epc",
    MappingProxyType({"sgx.intel.com/epc": "10Mi", "sgx.intel.com/enclave": "1", "sgx.intel.com/provision": "1"}),
)
_VENDORS = {
    "intel": INTEL,
    "sgx.intel.com/epc": INTEL,
    "azure": _resources("kubernetes.azure.com/sgx_epc_mem_in_MiB", **{"kubernetes.azure.com/sgx_epc_mem_in_MiB": "10"}),
    "alibaba": _resources("alibabacloud.com/sgx_epc_MiB", **{"alibabacloud.com/sgx_epc_MiB": "10"}),
}


def sgx_resources(text: str) -> SgxResources | None:
    """`intel`, `azure`, `alibaba`, another plugin's resource key (which gets 10 of its units), or `none`.

    Raises ValueError that says what can be given.
    """
    if text == "none":
        return None
    if (known := _VENDORS.get(text)) is not None:
        return known
    if _QUALIFIED.fullmatch(text):
        return _resources(text, **{text: "10"})
    raise ValueError(f"{text[:80]!r} is not intel, azure, alibaba, none or a resource key such as example.com/epc")
