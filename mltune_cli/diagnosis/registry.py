"""The checks, in the order in which they are shown."""

import difflib
from collections.abc import Sequence

from mltune_cli.diagnosis.checks import (
    autotune_caches,
    caches,
    clock,
    combinations,
    cpu_kernels,
    cublas_workspace,
    cudnn_benchmark,
    data,
    disk,
    docker,
    docker_disk,
    docker_gpu,
    driver,
    flash_attention,
    git,
    gpu,
    hash_seed,
    hub_offline,
    hub_token,
    lock,
    memory,
    model,
    nccl,
    open_files,
    python,
    recipe,
    requirements,
    shared_memory,
    tf32,
    threads,
    torch,
    warn_only,
)
from mltune_cli.diagnosis.finding import Check
from mltune_cli.errors import UsageError

CHECKS: tuple[Check, ...] = tuple(
    module.CHECK
    for module in (
        python, requirements, lock, combinations, torch, driver, gpu, memory,
        recipe, model, data, caches, hub_offline, hub_token,
        hash_seed, threads, cublas_workspace, tf32, cudnn_benchmark, warn_only, cpu_kernels, nccl,
        flash_attention, autotune_caches,
        shared_memory, open_files, disk, docker, docker_disk, docker_gpu, git, clock,
    )
)  # fmt: skip


def chosen_checks(names: Sequence[str]) -> tuple[Check, ...]:
    """Return the checks of the given names, in their own order; all where none is named.

    Args:
        names: of one check each, or of several with commas between.

    Raises:
        UsageError: there is no check of a name.
    """
    known = [check.name for check in CHECKS]
    parts = [part.strip() for name in names for part in name.split(",")]
    wanted = {part.replace("_", "-").lower() for part in parts if part}
    if names and not wanted:
        raise UsageError(f"--only {names[0]}: names no check; there are {', '.join(known)}")
    for name in sorted(wanted - set(known)):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"--only {name}: no such check; {hint}there are {', '.join(known)}")
    return tuple(check for check in CHECKS if not wanted or check.name in wanted)
