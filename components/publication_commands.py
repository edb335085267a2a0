"""`gridbox store`: publish folders as versions in an S3 store or a folder, and bring them back."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from components.publication import Published

app = typer.Typer(
    name="store",
    help="Publish artifacts, model repositories and checkpoints as immutable versions, in any S3 store or a folder.",
    epilog="S3 is found by AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or"
    " AWS_SHARED_CREDENTIALS_FILE) and AWS_CA_BUNDLE; never by options.",
    no_args_is_help=True,
    add_completion=False,
)

Base = Annotated[str, typer.Argument(help="Where versions lie: a path, file:///folder or s3://bucket/prefix.")]


@app.command("publish")
def publish_command(
    source: Annotated[Path, typer.Argument(help="The folder to publish.")],
    base: Base,
    expected: Annotated[
        str | None,
        typer.Option(help="Publish only if this version is served now; '' if none must be. Default: replace any."),
    ] = None,
) -> None:
    """Publish a folder as a new version and serve it from then on; prints where it lies.

    Every object is read back and hashed before the pointer moves. Cut off at any moment, the former version is served.
    """
    from components.progress import Download
    from components.publication import publish
    from components.store import redacted

    with Download(f"publishing {source} to {redacted(base)}") as moved:
        published = publish(source, base, expected=expected, report=moved.report)
    print(_summary(published), file=sys.stderr)
    typer.echo(published.uri)


@app.command("resolve")
def resolve_command(base: Base) -> None:
    """Print where the served version lies."""
    from components.publication import resolve

    published = resolve(base)
    print(_summary(published), file=sys.stderr)
    typer.echo(published.uri)


@app.command("list")
def list_command(base: Base) -> None:
    """List the versions, oldest first ('*' marks the served one), and what broken-off publishes have left."""
    from components.publication import versions

    found = versions(base)
    for published in found.complete:
        served = found.served is not None and published.version == found.served.version
        typer.echo(f"{'*' if served else ' '} {_summary(published)}")
    for leftover in found.leftovers:
        typer.echo(
            f"  {leftover.name}: left over or at work, {len(leftover.entries)} objects,"
            f" {leftover.bytes / 1e6:.1f} MB, last touched {leftover.modified:%Y-%m-%dT%H:%M:%SZ}"
        )
    typer.echo(f"{len(found.complete)} versions, {len(found.leftovers)} left-overs")


@app.command("prune")
def prune_command(
    base: Base,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions stay; the served one does anyway.")],
    young: Annotated[
        float, typer.Option("--young", min=0, help="Hours within which a publish without an end may still be at work.")
    ] = 24.0,
) -> None:
    """Remove old versions, and what broken-off publishes have left."""
    from components.publication import prune

    pruned = prune(base, keep, young=timedelta(hours=young))
    for name in (*pruned.versions, *pruned.leftovers):
        typer.echo(f"removed {name}")
    for name in pruned.spared:
        typer.echo(f"kept {name}: younger than {young:g} hours, it may belong to a publish at work")
    typer.echo(
        f"removed {len(pruned.versions)} versions and {len(pruned.leftovers)} left-overs, {pruned.bytes / 1e6:.1f} MB"
    )


@app.command("fetch")
def fetch_command(
    base: Base,
    destination: Annotated[Path, typer.Argument(help="The new folder.")],
    version: Annotated[str, typer.Option(help="Another version than the served one.")] = "",
) -> None:
    """Bring a version into a new folder; every file is verified."""
    from components.progress import Download
    from components.publication import fetch_published
    from components.store import redacted

    with Download(f"fetching {redacted(base)}") as moved:
        published = fetch_published(base, destination, version, report=moved.report)
    typer.echo(f"{destination}: {_summary(published)}")


def _summary(published: "Published") -> str:
    return (
        f"{published.version}: {published.kind or 'folder'}, {published.objects} objects,"
        f" {published.bytes / 1e6:.1f} MB, sha256 {published.digest[:16]}…, complete {published.time}"
    )
