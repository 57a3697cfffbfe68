# SPDX-License-Identifier: Apache-2.0
"""The tree of verbs, and the one place where an error becomes a line on stderr and an exit status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]
from typer.core import TyperGroup

from manifests.errors import ManifestError
from marblemesh.cli import (
    certificate_verbs,
    envoy_verbs,
    gramine_verbs,
    help_verbs,
    inject_verbs,
    linkerd_verbs,
    manifest_verbs,
    package_verbs,
    proxy_verbs,
    recovery_verbs,
    secret_verbs,
    status_verbs,
    xds_verbs,
)
from marblemesh.cli.errors import CliError
from marblemesh.client import ClientError, RequestRefused
from sds.attestation.errors import AttestationError

_PROGRAMS = "Programs"
_RECOVERY = "Recovery"


class _Verbs(TyperGroup):
    """Verbs of two words, such as `recover-with-signature sign-secret`, beside one of the first word alone."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        both = " ".join(args[:2])
        if len(args) > 1 and both in self.commands:
            return both, self.commands[both], args[2:]
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        # A shell would quote the blank.
        return [item for item in super().shell_complete(ctx, incomplete) if " " not in str(item.value)]


app = typer.Typer(
    name="marblemesh",
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="A service mesh for confidential computing: mTLS ends inside the enclave, and one attestation statement "
    "proves the whole app.",
    epilog="Try it: marblemesh demo  ·  Then: marblemesh manifest check FILE, marblemesh coordinator --simulation, "
    "marblemesh manifest set FILE localhost:4433 --simulation",
)
app.add_typer(manifest_verbs.verbs, name="manifest")
app.add_typer(certificate_verbs.verbs, name="certificate")
app.add_typer(secret_verbs.verbs, name="secret")
app.add_typer(xds_verbs.verbs, name="xds")
app.add_typer(envoy_verbs.verbs, name="envoy")
app.add_typer(linkerd_verbs.verbs, name="linkerd")
app.command(epilog="Example: marblemesh status coordinator:4433 --era-config era-config.json")(status_verbs.status)
app.command(epilog="Example: marblemesh verify localhost:4433 --simulation -o json")(status_verbs.verify)
app.command("package-info", epilog="Example: marblemesh package-info app.sig -o json")(package_verbs.package_info)
app.command(
    "gramine-manifest",
    epilog="Example: marblemesh gramine-manifest fused --marble-type web --app app.py -o web.manifest",
)(gramine_verbs.gramine_manifest)
app.command(epilog="Example: marblemesh version -o json")(status_verbs.version)
app.command(epilog="Example: marblemesh completion bash > ~/.local/share/bash-completion/completions/marblemesh")(
    help_verbs.completion
)
app.command("help", epilog="Example: marblemesh help manifest set")(help_verbs.help_)

_KUBERNETES = "Kubernetes"
app.command(
    epilog="Example: marblemesh inject -f web.yaml --manifest manifest.json --linkerd opaque | kubectl apply -f -",
    rich_help_panel=_KUBERNETES,
)(inject_verbs.inject)
app.command(
    epilog="Example: kubectl get deploy web -o yaml | marblemesh uninject | kubectl apply -f -",
    rich_help_panel=_KUBERNETES,
)(inject_verbs.uninject)

_BY_SIGNATURE = "recover-with-signature"
app.command(epilog="Example: marblemesh recover secret coordinator:4433 --key recovery.key", rich_help_panel=_RECOVERY)(
    recovery_verbs.recover
)
app.command(
    _BY_SIGNATURE,
    epilog=f"Example: marblemesh {_BY_SIGNATURE} secret.enc coordinator:4433 -s secret.sig",
    rich_help_panel=_RECOVERY,
)(recovery_verbs.recover_with_signature)
for _name, _verb, _example in (
    ("public-key", recovery_verbs.public_key, "coordinator:4433 -o coordinator.pem"),
    (
        "encrypt-secret",
        recovery_verbs.encrypt_secret,
        "secret --key recovery.key --coordinator-pub-key coordinator.pem -o secret.enc",
    ),
    ("sign-secret", recovery_verbs.sign_secret, "secret --key recovery.key -o secret.sig"),
):
    _example = f"Example: marblemesh {_BY_SIGNATURE} {_name} {_example}"
    app.command(f"{_BY_SIGNATURE} {_name}", epilog=_example, rich_help_panel=_RECOVERY)(_verb)
    app.command(f"recover {_name}", epilog=_example, hidden=True)(_verb)


# The Coordinator says these in MarbleRun's words, whatever was asked of it.
_HINTS = {
    "requested value not set": "no manifest is in force; 'marblemesh status' says whether one can be set, or has to be "
    "recovered",
    "server is not in expected state": "'marblemesh status' says what the Coordinator is ready for; once a manifest is "
    "set, 'marblemesh manifest update apply' changes it",
    "no update in progress": "it may have been applied, cancelled or found impossible; 'marblemesh manifest log' says",
}


def _program(name: str, help_text: str) -> None:
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


_program("coordinator", "The control plane: verifies quotes against the manifest, issues certificates, speaks xDS.")
_program("proxy", "A Marble's worker: attests, starts the app, terminates mTLS in front of it.")
app.command(
    "proxy status", epilog="Example: marblemesh proxy status --admin-addr localhost:15090", rich_help_panel=_PROGRAMS
)(proxy_verbs.status)
_program("injector", "The Kubernetes admission webhook: makes Marbles of labelled pods when they are created.")
_program("demo", "A whole confidential app on this machine, beside a real Envoy, in simulated enclaves.")


class _Usage(Protocol):
    def format_message(self) -> str: ...


# typer carries its own copy of click since 0.2x and used the real one before; in both this is click's UsageError.
_UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Carry out one command line and return its exit status: 0 good, 1 failed or the answer is no, 2 wrong usage."""
    completion_init()  # in the shell's completion the arguments come by environment, and click answers
    try:
        result: Any = app(args=list(arguments), prog_name="marblemesh", standalone_mode=False, obj=environment)
    except _UsageError as error:
        return _usage(error)
    except RequestRefused as error:
        return _fail(str(error), 1, _HINTS.get(error.message))
    except (CliError, ClientError, AttestationError, ManifestError) as error:
        return _fail(str(error), 1)
    except typer.Abort:
        return _fail("aborted", 1)
    except BrokenPipeError:
        return 1  # the reader (head, less) has seen enough
    except OSError as error:
        return _fail(f"{error.strerror or type(error).__name__}".lower(), 1)
    return result if isinstance(result, int) else 0


def _usage(error: Exception) -> int:
    text = cast(_Usage, error).format_message()
    # Called without a verb: the text is the help, or rich has printed it already.
    if not text or "\n" in text.strip():
        typer.echo(text.rstrip(), err=True)
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "marblemesh"
    text = text.replace("Value error, ", "").removeprefix("Invalid value: ")
    return _fail(f"{_lower(text.strip().rstrip('.'))} (see {command} --help)", 2)


def _fail(text: str, status: int, hint: str | None = None) -> int:
    line = " ".join(text.split())
    typer.secho(f"marblemesh: {line}", fg=typer.colors.RED, err=True)
    if hint is not None:
        typer.echo(f"hint: {hint}", err=True)
    return status


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
