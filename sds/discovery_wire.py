# SPDX-License-Identifier: Apache-2.0
"""Discovery responses, spliced: what is the same for many clients is encoded once, what is a stream's own put in front.

    DeltaDiscoveryResponse  type, control plane │ nonce │ Resource{name, version, Any{type, │ body │}} ...
    DiscoveryResponse       type, control plane │ nonce, version │ Any{type, │ body │} ...
                            per identifier      │ own   │ per resource       │ as it is

A message is the concatenation of its fields, in any order (Protocol Buffers, "Message Structure"), so that no message
object has to be built and no body parsed: 1 us instead of 10, and a change is serialised once however many take it.
"""

from __future__ import annotations

from functools import lru_cache

# Field numbers of envoy.service.discovery.v3; every field here is length-delimited (wire type 2).
_ANY_TYPE_URL, _ANY_VALUE = 1, 2
_RESOURCE_VERSION, _RESOURCE_ANY, _RESOURCE_NAME = 1, 2, 3
_RESOURCES, _TYPE_URL, _NONCE = 2, 4, 5  # the same in both responses
_STATE_VERSION, _STATE_CONTROL_PLANE = 1, 6
_DELTA_CONTROL_PLANE = 7
_IDENTIFIER = 1


def before_any(type_url: str, size: int) -> bytes:
    """`resources` of a DiscoveryResponse up to where a body of `size` bytes begins."""
    inner = _field(_ANY_TYPE_URL, type_url.encode()) + _head(_ANY_VALUE, size)
    return _head(_RESOURCES, len(inner) + size) + inner


def before_resource(type_url: str, name: str, version: str, size: int) -> bytes:
    """`resources` of a DeltaDiscoveryResponse up to where a body of `size` bytes begins."""
    packed = _field(_ANY_TYPE_URL, type_url.encode()) + _head(_ANY_VALUE, size)
    inner = _field(_RESOURCE_NAME, name.encode()) + _field(_RESOURCE_VERSION, version.encode())
    inner += _head(_RESOURCE_ANY, len(packed) + size) + packed
    return _head(_RESOURCES, len(inner) + size) + inner


# Few identifiers (one per program) and types; clients may ask for types of their own invention, hence the bound.
@lru_cache(maxsize=128)
def state_start(identifier: str, type_url: str) -> bytes:
    """What every DiscoveryResponse of a type begins with."""
    return _start(identifier, type_url, _STATE_CONTROL_PLANE)


@lru_cache(maxsize=128)
def delta_start(identifier: str, type_url: str) -> bytes:
    """What every DeltaDiscoveryResponse of a type begins with."""
    return _start(identifier, type_url, _DELTA_CONTROL_PLANE)


def nonce(text: str) -> bytes:
    """The `nonce` of either response."""
    return _field(_NONCE, text.encode())


def state_version(text: str) -> bytes:
    """The `version_info` of a DiscoveryResponse."""
    return _field(_STATE_VERSION, text.encode())


def text_field(number: int, text: str) -> bytes:
    """A string field of any message."""
    return _field(number, text.encode())


def _start(identifier: str, type_url: str, control_plane: int) -> bytes:
    return _field(_TYPE_URL, type_url.encode()) + _field(control_plane, _field(_IDENTIFIER, identifier.encode()))


def _field(number: int, content: bytes) -> bytes:
    return _head(number, len(content)) + content


def _head(number: int, size: int) -> bytes:
    return bytes((number << 3 | 2,)) + _varint(size)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
