"""Room for an image on the engine's disk."""

from collections.abc import Sequence

from mltune_cli.diagnosis.checks.docker import answering_engine
from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.packages import torch_build
from mltune_cli.diagnosis.subject import Subject
from mltune_cli.errors import NoVerdictError
from mltune_cli.imaging.bases import require_room
from mltune_cli.imaging.engine import free_bytes
from mltune_cli.memory_estimate import gibibytes


def look(subject: Subject) -> Sequence[Finding]:
    """Compare what is free with what an image of the installed torch's kind needs."""
    build = torch_build()
    with answering_engine(subject) as engine:
        if engine is None:
            return [in_order("no Docker engine answers, so no disk of one is looked at")]
        try:
            require_room(engine, "gpu" if build is not None and build[1] is not None else "cpu")
        except NoVerdictError as error:
            seen, _, remedy = error.message.partition("; ")
            return [
                doubtful(
                    seen,
                    "`mltune build-image` stops before it builds",
                    remedy,
                    command="docker system prune",
                    scope="images",
                )
            ]
        free = free_bytes(engine.facts)
    if free is None:
        return [known("the engine's disk cannot be seen from here", scope="images")]
    return [in_order(f"{gibibytes(free)} free in {engine.facts.root}")]


CHECK = Check("docker-disk", "the engine's disk", look)
