# SPDX-License-Identifier: Apache-2.0
"""Rules for packages and for the Marbles that name them."""

from __future__ import annotations

from manifests.places import Findings
from manifests.wire import ManifestWire, MarbleWire, PackageWire

# Statuses that Intel's verification yields, for SGX and TDX.
TCB_STATUSES = frozenset(
    {
        "UpToDate",
        "OutOfDate",
        "Revoked",
        "ConfigurationNeeded",
        "OutOfDateConfigurationNeeded",
        "SWHardeningNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "TDRelaunchAdvised",
        "TDRelaunchAdvisedConfigurationNeeded",
        "Unknown",
    }
)

# A type goes into certificates, SPIFFE IDs (at most 2048 bytes, a byte may take three there) and metric labels.
MAX_NAME = 128


def check_packages(document: ManifestWire, found: Findings) -> None:
    if not document.packages:
        found.error("no allowed packages defined", "Packages")
    # Only packages that a Marble names: a file may list others for later.
    used = dict.fromkeys(marble.package for marble in document.marbles.values())
    for name in used:
        if name in document.packages:
            _check_sgx(name, document.packages[name], found)
    for name, package in document.packages.items():
        _check_confidential_vm(name, package, found)
        if package.debug:
            found.warn(
                f"package {name} accepts debug enclaves only, whose memory the host can read: never in production",
                *("Packages", name, "Debug"),
            )
        for index, status in enumerate(package.accepted_tcb_statuses):
            if status not in TCB_STATUSES:
                found.warn(
                    f"{status!r} is no TCB status and never matches (known: {', '.join(sorted(TCB_STATUSES))})",
                    *("Packages", name, "AcceptedTCBStatuses", index),
                )


def _check_sgx(name: str, package: PackageWire, found: Findings) -> None:
    """Either UniqueID alone, or SignerID, ProductID and SecurityVersion; nothing at all if it is a VM's package."""
    at = ("Packages", name)
    # MarbleRun only logs these for a debug package, so they must not refuse one that works there.
    report = found.warn if package.debug else found.error
    others = (package.signer_id or None, package.product_id, package.security_version)
    if package.unique_id:
        if any(value is not None for value in others):
            report(f"manifest specifies both UniqueID *and* SignerID/ProductID/SecurityVersion in package {name}", *at)
        return
    if all(value is None for value in others) and (package.tdx is not None or package.snp is not None):
        return
    for member, value in zip(("SignerID", "ProductID", "SecurityVersion"), others, strict=True):
        if value is None:
            report(f"manifest misses value for {member} in package {name}", *at, member)


def _check_confidential_vm(name: str, package: PackageWire, found: Findings) -> None:
    if package.tdx is not None:
        tdx = package.tdx
        if not tdx.mrtd:
            # The other registers are written by the firmware that MRTD measures, or come from the host.
            found.error(f"manifest misses value for MRTD in package {name}", "Packages", name, "TDX", "MRTD")
        elif not (tdx.rtmr1 and tdx.rtmr2):
            found.warn(
                f"MRTD alone measures the firmware of package {name}: pin RTMR1 and RTMR2 to measure kernel and initrd",
                *("Packages", name, "TDX"),
            )
    if package.snp is not None and not package.snp.measurement:
        found.error(f"manifest misses value for Measurement in package {name}", "Packages", name, "SNP", "Measurement")


def check_marbles(document: ManifestWire, found: Findings) -> None:
    if not document.marbles:
        found.error("no allowed marbles defined", "Marbles")
    for name, marble in document.marbles.items():
        if marble.package not in document.packages:
            found.error(f"manifest does not contain marble package {marble.package}", "Marbles", name, "Package")
        for index, tag in enumerate(marble.tls):
            if tag not in document.tls:
                found.error(f"manifest misses TLS entry for {tag}", "Marbles", name, "TLS", index)
        check_name("Marble type", name, found, "Marbles", name)
        _check_parameters(name, marble, found)


def check_name(what: str, name: str, found: Findings, *at: str) -> None:
    """Names that end up in certificates and resource names are short, printable text."""
    if not name.strip() or not name.isprintable():
        found.error(f"{what} {name[:40]!r} is not a name: want printable characters", *at)
    elif len(name.encode()) > MAX_NAME:
        found.error(f"{what} {name[:40]!r}… has {len(name.encode())} bytes, at most {MAX_NAME} are allowed", *at)


def _check_parameters(name: str, marble: MarbleWire, found: Findings) -> None:
    """What no operating system can hand to a process: NUL in its environment or arguments, '=' in a variable's name."""
    at = ("Marbles", name, "Parameters")
    for variable in marble.parameters.env:
        if not variable or "=" in variable or "\0" in variable:
            found.error(f"{variable[:40]!r} is no name of an environment variable", *at, "Env", variable)
    for path in marble.parameters.files:
        if not path or "\0" in path:
            found.error(f"{path[:40]!r} is no path of a file", *at, "Files", path)
    for index, argument in enumerate(marble.parameters.argv):
        if "\0" in argument:
            found.error("argument contains null bytes", *at, "Argv", index)
