# SPDX-License-Identifier: Apache-2.0
"""Every verb by its first word, and which module has it. A module is loaded only when a command line may mean it:
most of what a verb takes to start is the import of libraries that other verbs need.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from marblemesh.cli.errors import CliError

_PROGRAMS, _RECOVERY, _KUBERNETES = "Programs", "Recovery", "Kubernetes"


def register(app: typer.Typer, word: str) -> None:
    """Add the verbs that begin with this word; all of them if there is no such word (the help names them all)."""
    for add in (_FAMILIES[word],) if word in _FAMILIES else dict.fromkeys(_FAMILIES.values()):
        add(app)


def _manifest(app: typer.Typer) -> None:
    from marblemesh.cli import manifest_verbs

    app.add_typer(manifest_verbs.verbs, name="manifest")


def _certificate(app: typer.Typer) -> None:
    from marblemesh.cli import certificate_verbs

    app.add_typer(certificate_verbs.verbs, name="certificate")


def _secret(app: typer.Typer) -> None:
    from marblemesh.cli import secret_verbs

    app.add_typer(secret_verbs.verbs, name="secret")


def _xds(app: typer.Typer) -> None:
    from marblemesh.cli import xds_verbs

    app.add_typer(xds_verbs.verbs, name="xds")


def _envoy(app: typer.Typer) -> None:
    from marblemesh.cli import envoy_verbs

    app.add_typer(envoy_verbs.verbs, name="envoy")


def _linkerd(app: typer.Typer) -> None:
    from marblemesh.cli import linkerd_verbs

    app.add_typer(linkerd_verbs.verbs, name="linkerd")


def _status(app: typer.Typer) -> None:
    from marblemesh.cli.status_verbs import status, verify, version

    app.command(epilog="Example: marblemesh status coordinator:4433 --era-config era-config.json")(status)
    app.command(epilog="Example: marblemesh verify localhost:4433 --simulation -o json")(verify)
    app.command(epilog="Example: marblemesh version -o json")(version)


def _package(app: typer.Typer) -> None:
    from marblemesh.cli.package_verbs import package_info

    app.command("package-info", epilog="Example: marblemesh package-info app.sig -o json")(package_info)


def _gramine(app: typer.Typer) -> None:
    from marblemesh.cli.gramine_verbs import gramine_manifest

    example = "Example: marblemesh gramine-manifest fused --marble-type web --app app.py -o web.manifest"
    app.command("gramine-manifest", epilog=example)(gramine_manifest)


def _help(app: typer.Typer) -> None:
    from marblemesh.cli.help_verbs import completion, help_

    example = "Example: marblemesh completion bash > ~/.local/share/bash-completion/completions/marblemesh"
    app.command(epilog=example)(completion)
    app.command("help", epilog="Example: marblemesh help manifest set")(help_)


def _inject(app: typer.Typer) -> None:
    from marblemesh.cli.inject_verbs import inject, uninject

    app.command(
        epilog="Example: marblemesh inject -f web.yaml --manifest manifest.json --linkerd opaque | kubectl apply -f -",
        rich_help_panel=_KUBERNETES,
    )(inject)
    app.command(
        epilog="Example: kubectl get deploy web -o yaml | marblemesh uninject | kubectl apply -f -",
        rich_help_panel=_KUBERNETES,
    )(uninject)


def _recover(app: typer.Typer) -> None:
    from marblemesh.cli import recovery_verbs as verbs

    two = "recover-with-signature"
    example = "Example: marblemesh recover secret coordinator:4433 --key recovery.key"
    app.command(epilog=example, rich_help_panel=_RECOVERY)(verbs.recover)
    example = f"Example: marblemesh {two} secret.enc coordinator:4433 -s secret.sig"
    app.command(two, epilog=example, rich_help_panel=_RECOVERY)(verbs.recover_with_signature)
    encrypt = "secret --key recovery.key --coordinator-pub-key coordinator.pem -o secret.enc"
    for name, verb, arguments in (
        ("public-key", verbs.public_key, "coordinator:4433 -o coordinator.pem"),
        ("encrypt-secret", verbs.encrypt_secret, encrypt),
        ("sign-secret", verbs.sign_secret, "secret --key recovery.key -o secret.sig"),
    ):
        example = f"Example: marblemesh {two} {name} {arguments}"
        app.command(f"{two} {name}", epilog=example, rich_help_panel=_RECOVERY)(verb)
        app.command(f"recover {name}", epilog=example, hidden=True)(verb)


def _programs(app: typer.Typer) -> None:
    from marblemesh.cli import proxy_verbs

    _elsewhere(app, "coordinator", "The control plane: verifies quotes, issues certificates, speaks xDS.")
    _elsewhere(app, "proxy", "A Marble's worker: attests, starts the app, terminates mTLS in front of it.")
    example = "Example: marblemesh proxy status --admin-addr localhost:15090"
    app.command("proxy status", epilog=example, rich_help_panel=_PROGRAMS)(proxy_verbs.status)
    _elsewhere(app, "injector", "The Kubernetes admission webhook: makes Marbles of labelled pods.")
    _elsewhere(app, "demo", "A whole confidential app on this machine, beside a real Envoy, in simulated enclaves.")


def _elsewhere(app: typer.Typer, name: str, help_text: str) -> None:
    """List a program that `marblemesh` starts before it comes here; loading it would bring its libraries along."""

    def elsewhere() -> None:
        raise CliError(f"{name} is a program of its own: run 'marblemesh {name}'")

    app.command(
        name,
        help=help_text,
        rich_help_panel=_PROGRAMS,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(elsewhere)


# In the order of the help.
_FAMILIES: dict[str, Callable[[typer.Typer], None]] = {
    "manifest": _manifest,
    "certificate": _certificate,
    "secret": _secret,
    "xds": _xds,
    "envoy": _envoy,
    "linkerd": _linkerd,
    "status": _status,
    "verify": _status,
    "version": _status,
    "package-info": _package,
    "gramine-manifest": _gramine,
    "completion": _help,
    "inject": _inject,
    "uninject": _inject,
    "recover": _recover,
    "recover-with-signature": _recover,
    "coordinator": _programs,
    "proxy": _programs,
    "injector": _programs,
    "demo": _programs,
}
