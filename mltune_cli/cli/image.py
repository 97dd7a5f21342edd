"""Options and help of `mltune build-image`."""

from pathlib import Path
from typing import Annotated

import typer

from mltune_cli.cli.options import JsonOption
from mltune_cli.cli.program import app
from mltune_cli.errors import UsageError


@app.command("build-image", epilog="With -- COMMAND, that is run in the image instead.")
def build_image(
    context: typer.Context,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Build on CUDA, with the CUDA build of torch.")
    ] = False,
    tag: Annotated[
        str | None, typer.Option("--tag", help="Default: mltune:repro-COMMIT, 8 digits of it.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="REF[@DIGEST]", help="Image to build on.")
    ] = None,
    build_args: Annotated[
        list[str] | None,
        typer.Option("--build-arg", metavar="NAME=VALUE", help="For an ARG; may be repeated."),
    ] = None,
    wheelhouse: Annotated[
        Path | None,
        typer.Option("--wheelhouse", metavar="DIR", help="Install these wheels, without an index."),
    ] = None,
    ca_bundle: Annotated[
        Path | None,
        typer.Option("--ca-bundle", metavar="FILE", help="Certificates to trust while building."),
    ] = None,
    builder: Annotated[
        str, typer.Option("--builder", metavar="sdk|buildx", help="The engine's own, or BuildKit.")
    ] = "sdk",
    platform: Annotated[
        str | None, typer.Option("--platform", metavar="OS/ARCH", help="Such as linux/arm64.")
    ] = None,
    dockerfile: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Default: ./Dockerfile, or mltune's own."),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Take no step from earlier builds.")
    ] = False,
    run: Annotated[
        bool, typer.Option("--run/--no-run", help="Run the smoke check in the image.")
    ] = True,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="RUN", help="Compare with this run of the host."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Limit of the run, such as 8g.")
    ] = None,
    network: Annotated[
        bool, typer.Option("--network", help="Let the run use the network.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Build twice from nothing, and compare.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Push the image once its run is good.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Seconds for a build, and for the run.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="For image.json and what the run wrote.")
    ] = Path("image_output"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be built and run.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the pinned image, run the smoke check in it, and bring the artifacts out."""
    from mltune_cli.commands import build_image as command
    from mltune_cli.imaging.plan import BuildOptions, builder_named

    if context.obj is not None and not context.obj:
        raise UsageError("--: a command must follow, such as: -- mltune train")
    if timeout is not None and timeout <= 0:
        raise UsageError("--timeout: must be more than 0 seconds")
    options = BuildOptions(
        gpu=gpu,
        tag=tag,
        base=base,
        build_args=build_args or (),
        wheelhouse=wheelhouse,
        ca_bundle=ca_bundle,
        builder=builder_named(builder),
        platform=platform,
        dockerfile=dockerfile,
        # Two builds of which one takes its steps from the other would be equal by themselves.
        use_cache=not (no_cache or verify),
        seconds=timeout,
    )
    trial = command.TrialOptions(
        run=run,
        command=context.obj or (),
        against=against,
        memory=memory,
        has_network=network,
        verify=verify,
        push=push,
    )
    code = command.build_image_command(
        options, trial, output=output, dry_run=dry_run, as_json=as_json
    )
    raise typer.Exit(code)
