"""Every condition that has a name: its values, and how it is made."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mltune_cli.reproduction.conditions import values
from mltune_cli.reproduction.conditions.arguments import (
    absolute_search_path,
    names_module,
    with_absolute_paths,
    with_arguments,
)
from mltune_cli.reproduction.conditions.draft import Apply, Draft

Scope = Literal["both", "recipes", "commands"]


@dataclass(frozen=True)
class Kind:
    """A condition by name.

    Attributes:
        name: as `--vary` takes it.
        spelled: its values, for `--vary list`.
        meaning: what is other, for `--vary list`.
        check: returns a value in the spelling that is reported; raises ValueError.
        apply: changes a draft.
        default: where no value is given; None where one must be, empty where the kind has none.
        scope: what it works for.
        instead: what to do where it does not work.
        changes_environment: whether environment classes differ by it.
        is_listed: whether `--vary list` names it; the others are for experiments.
    """

    name: str
    spelled: str
    meaning: str
    check: Callable[[str], str]
    apply: Apply
    default: str | Callable[[Mapping[str, str]], str] | None
    scope: Scope = "both"
    instead: str = ""
    changes_environment: bool = False
    is_listed: bool = True


def _sets(*names: str) -> Apply:
    def apply(draft: Draft, value: str) -> None:
        for name in names:
            draft.set(name, value)

    return apply


def _sets_key(key: str) -> Apply:
    return lambda draft, value: draft.set_keys({key: int(value)})


def _apply_clock(draft: Draft, value: str) -> None:
    if value.startswith("frozen@"):
        moment = datetime.fromisoformat(value.removeprefix("frozen@"))
        draft.ask_hook("clock_frozen_at", moment.timestamp())
    else:
        # All processes of a run get the same shift: an instant is one only for the first.
        draft.ask_hook("clock_shift_seconds", values.shift_seconds(value))


def _apply_loader_workers(draft: Draft, value: str) -> None:
    if draft.job is None:
        draft.ask_hook("loader_workers", int(value))
    else:
        draft.set_keys({"data.loader_workers": int(value)})


def _apply_threads(draft: Draft, value: str) -> None:
    if draft.job is None:
        _sets("OMP_NUM_THREADS", "MKL_NUM_THREADS")(draft, value)
    else:
        draft.set_keys({"reproducibility.threads": int(value)})


def _apply_gpu(draft: Draft, value: str) -> None:
    if draft.job is not None and draft.job.recipe.model.device == "cpu":
        raise ValueError("the recipe trains on the CPU (model.device: cpu)")
    draft.set("CUDA_VISIBLE_DEVICES", value)


def _apply_processes(draft: Draft, value: str) -> None:
    job = draft.require_job()
    draft.is_other = draft.is_other or job.processes.per_node != int(value)
    shape = job.processes.model_copy(update={"per_node": int(value)})
    draft.job = job.model_copy(update={"processes": shape})


def _apply_kill(draft: Draft, value: str) -> None:
    step = draft.kill_at = int(value)
    draft.is_other = True
    if draft.job is None:
        draft.hook["hold_at_step"] = step
    elif not 0 < draft.job.recipe.checkpoint.every_steps <= step:
        # There must be something to go on from; how often it is saved decides no bit.
        draft.set_keys({"checkpoint.every_steps": 1})


def _apply_umask(draft: Draft, value: str) -> None:
    draft.is_other = draft.is_other or values.present_umask() != int(value, 8)
    draft.umask = int(value, 8)


def _apply_home(draft: Draft, value: str) -> None:
    old = draft.get("HOME")
    draft.set("HOME", value or str(draft.fresh("home")))
    if old and not draft.get("PYTHONUSERBASE"):
        # Packages that were installed for the user alone are no setting of theirs.
        draft.set("PYTHONUSERBASE", str(Path(old) / ".local"))


def _apply_cold_cache(draft: Draft, value: str) -> None:  # noqa: ARG001 - takes none
    home = draft.get("HOME") or os.path.expanduser("~")  # noqa: PTH111
    old = Path(draft.get("XDG_CACHE_HOME") or Path(home) / ".cache")
    # Downloaded models are no cache of anything that was computed, and may not be had again.
    for name, place in (("HF_HOME", "huggingface"), ("TORCH_HOME", "torch")):
        if not draft.get(name):
            draft.set(name, str(old / place))
    for name in (
        "MLTUNE_CACHE", "XDG_CACHE_HOME", "HF_DATASETS_CACHE", "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "TORCH_EXTENSIONS_DIR",
    ):  # fmt: skip
        draft.set(name, str(draft.fresh(f"cache/{name.lower()}")))


def _apply_working_directory(draft: Draft, value: str) -> None:
    old = Path.cwd()
    draft.cwd = Path(value) if value else draft.fresh("working-directory")
    draft.is_other = draft.is_other or draft.cwd != old
    search_path = draft.get("PYTHONPATH")
    if search_path:
        draft.settings["PYTHONPATH"] = absolute_search_path(search_path, old)
    if not draft.command:
        return
    draft.command = with_absolute_paths(draft.command, old)
    if names_module(draft.command):
        parts = [str(old), draft.get("PYTHONPATH")]
        draft.settings["PYTHONPATH"] = os.pathsep.join(part for part in parts if part)


def _apply_argument(draft: Draft, value: str) -> None:
    command = with_arguments(draft.command, value)
    draft.is_other = draft.is_other or command != draft.command
    draft.command = command


def _apply_deterministic(draft: Draft, value: str) -> None:  # noqa: ARG001 - takes none
    draft.ask_hook("deterministic", True)
    if not draft.get("CUBLAS_WORKSPACE_CONFIG"):
        draft.set("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _asks_hook(name: str, read: Callable[[str], Any] = str) -> Apply:
    return lambda draft, value: draft.ask_hook(name, read(value))


def _other_hash_seed(environment: Mapping[str, str]) -> str:
    return "2" if environment.get("PYTHONHASHSEED") == "1" else "1"


def _other_threads(environment: Mapping[str, str]) -> str:
    # Where nothing is set, torch takes every core. A recipe has one thread unless it says more.
    present = environment.get("OMP_NUM_THREADS") or str(os.cpu_count())
    return "3" if present == "2" else "2"


# In the order in which they are made: paths of a command, its arguments included, come last.
_ALL = (
    Kind("hash-seed", "N", "PYTHONHASHSEED: the order of sets", values.hash_seed,
         _sets("PYTHONHASHSEED"), _other_hash_seed),
    Kind("directory-order", "reversed|shuffled|sorted", "the order in which folders list files",
         values.directory_order, _asks_hook("directory_order"), "reversed"),
    Kind("locale", "NAME", "LC_ALL and LANG", values.locale_name, _sets("LC_ALL", "LANG"),
         values.default_locale),
    Kind("time-zone", "ZONE", "TZ", values.time_zone, _sets("TZ"), "GMT-14"),
    Kind("clock", "+1d|-3h|INSTANT", "what time and date Python is told", values.clock,
         _apply_clock, values.DEFAULT_SHIFT),
    Kind("umask", "0NNN", "the modes of new files", values.umask, _apply_umask,
         lambda _: values.default_umask()),
    Kind("home", "DIR", "HOME; an empty folder", values.existing_folder, _apply_home, ""),
    Kind("cold-cache", "", "caches of mltune, datasets and compilers are empty", values.nothing,
         _apply_cold_cache, ""),
    Kind("loader-workers", "N", "processes that load data", values.at_least_none,
         _apply_loader_workers, "2"),
    Kind("threads", "N", "threads of an operation on the CPU", values.at_least_one,
         _apply_threads, _other_threads, changes_environment=True),
    Kind("instruction-set", "default|avx2|avx512", "which kernels torch takes on the CPU",
         values.instruction_set, _sets("ATEN_CPU_CAPABILITY"), "default",
         changes_environment=True),
    Kind("gpu", "INDEX", "which GPU", values.gpu, _apply_gpu,
         values.default_gpu, changes_environment=True),
    Kind("processes", "N", "processes that train", values.at_least_one, _apply_processes, "2",
         "recipes", "a command says it itself: --vary argument=\"--nproc-per-node 2\"",
         changes_environment=True),
    Kind("evaluation", "N", "evaluate.every_steps", values.at_least_none,
         _sets_key("evaluate.every_steps"), "1",
         "recipes", "a command says it itself: --vary argument=\"--eval_steps 1\""),
    Kind("kill-and-resume", "STEP", "killed after that step, and started again",
         values.at_least_one, _apply_kill, "2"),
    Kind("argument", '"--FLAG VALUE"', "another value of a flag, or one more", values.arguments,
         _apply_argument, None, "commands", "a recipe has keys: --vary section.key=VALUE"),
    Kind("working-directory", "DIR", "an empty folder; files that the command names are found",
         values.existing_folder, _apply_working_directory, ""),
    Kind("seeds", "N", "all generators start from it", values.at_least_none,
         _asks_hook("seeds", int), None, is_listed=False),
    Kind("deterministic", "", "torch's deterministic algorithms", values.nothing,
         _apply_deterministic, "", is_listed=False),
    Kind("no-kernel-search", "", "torch.backends.cudnn.benchmark stays off", values.nothing,
         lambda draft, _: draft.ask_hook("no_kernel_search", True), "", is_listed=False),
)  # fmt: skip
KINDS = {kind.name: kind for kind in _ALL}
ENVIRONMENT_PREFIX = "env."
