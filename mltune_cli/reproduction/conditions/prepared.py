"""A command, or a job, with the conditions that its run shall have."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from mltune_cli.errors import RecipeValueError, UsageError
from mltune_cli.launching.command_process import HOOK_FOLDER
from mltune_cli.launching.environment import worker_environment
from mltune_cli.launching.job import TrainingJob
from mltune_cli.recipe.schema import check_combinations
from mltune_cli.recipe.yaml_lines import parse_scalar
from mltune_cli.reproduction.conditions.draft import Apply, Condition, Draft
from mltune_cli.reproduction.conditions.kinds import ENVIRONMENT_PREFIX, KINDS
from mltune_cli.reproduction.conditions.parsing import Target, require_scope

# Read by the start-up hook; see `witness.conditions`.
_REQUEST = "MLTUNE_CONDITIONS"
_HOLD = "hold_at_step"
_PATH_KEYS = ("data.train", "data.validation", "model.name_or_path")
_ORDER = {name: place for place, name in enumerate(KINDS)}


@dataclass(frozen=True)
class PreparedCommand:
    """A command to start, with all that its conditions need.

    Attributes:
        command: program and arguments.
        environment: whole; the start-up hook's own variables come on top.
        cwd: None is the present one.
        umask: -1 is the present one.
        kill_at: the optimizer step after which the run is killed and started again.
        unchanged: conditions that the run has without them.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    cwd: Path | None = None
    umask: int = -1
    kill_at: int | None = None
    unchanged: Sequence[Condition] = ()

    def restarted(self) -> "PreparedCommand":
        """Return the same run, not to be killed any more."""
        asked = json.loads(self.environment.get(_REQUEST, "{}"))
        asked.pop(_HOLD, None)
        environment = {**self.environment, _REQUEST: json.dumps(asked)}
        return replace(self, environment=environment, kill_at=None)


@dataclass(frozen=True)
class PreparedJob:
    """A job to start, with all that its conditions need.

    Attributes:
        job: with the recipe and the processes of this run.
        inherited: the environment to build the worker's from.
        settings: variables that come on top of the worker's environment.
        cwd: None is the present one.
        umask: -1 is the present one.
        kill_at: the step after which the run is killed and resumed.
        unchanged: conditions that the run has without them.
    """

    job: TrainingJob
    inherited: Mapping[str, str]
    settings: Mapping[str, str]
    cwd: Path | None = None
    umask: int = -1
    kill_at: int | None = None
    unchanged: Sequence[Condition] = ()


def prepared_command(
    command: Sequence[str],
    environment: Mapping[str, str],
    conditions: Iterable[Condition],
    folder: Path,
) -> PreparedCommand:
    """Return a command with conditions.

    Args:
        command: program and arguments.
        environment: without the conditions.
        conditions: of which later ones take back earlier ones of the same name.
        folder: for fresh folders; made where one is needed. No two runs may share it.

    Raises:
        UsageError: a condition is not for commands.
    """
    draft = Draft(folder, environment, command=list(command))
    unchanged = _apply_all(draft, conditions, "commands")
    if draft.hook:
        draft.settings[_REQUEST] = json.dumps(draft.hook)
    return PreparedCommand(
        draft.command, {**environment, **draft.settings}, draft.cwd, draft.umask, draft.kill_at,
        unchanged,
    )  # fmt: skip


def prepared_job(
    job: TrainingJob,
    environment: Mapping[str, str],
    conditions: Iterable[Condition],
    folder: Path,
) -> PreparedJob:
    """Return a job with conditions.

    Args:
        job: without the conditions.
        environment: that the worker's would be built from without them.
        conditions: of which later ones take back earlier ones of the same name.
        folder: for fresh folders; made where one is needed. No two runs may share it.

    Raises:
        UsageError: a condition is not for recipes, or its value is none that the recipe can have.
    """
    baseline = worker_environment(job.recipe, environment)
    draft = Draft(folder, baseline, job=job)
    unchanged = _apply_all(draft, conditions, "recipes")
    if draft.hook:
        path = draft.get("PYTHONPATH")
        draft.settings[_REQUEST] = json.dumps(draft.hook)
        draft.settings["PYTHONPATH"] = os.pathsep.join(
            [str(HOOK_FOLDER), path] if path else [str(HOOK_FOLDER)]
        )
    return PreparedJob(
        draft.require_job(), environment, draft.settings, draft.cwd, draft.umask, draft.kill_at,
        unchanged,
    )  # fmt: skip


def require_others(unchanged: Iterable[Condition], wanted: Iterable[Condition]) -> None:
    """Refuse conditions that the first run has as well: nothing would be shown by them.

    Raises:
        UsageError: names the first of them.
    """
    same = [condition for condition in unchanged if condition in wanted]
    if same:
        raise UsageError(
            f"--vary {same[0]}: is what the first run has already; choose another value"
        )


def _apply_all(draft: Draft, conditions: Iterable[Condition], target: Target) -> list[Condition]:
    """Make conditions in the order in which their kinds stand; return those that change nothing."""
    unchanged = []
    ordered = sorted(conditions, key=lambda condition: _ORDER.get(condition.name, -1))
    for condition in ordered:
        require_scope(condition, target)
        draft.is_other = False
        try:
            _maker(condition)(draft, condition.value)
            if draft.job is not None:
                check_combinations(draft.job.recipe)
        except ValidationError as error:
            problem = str(error.errors()[0]["msg"])
            raise UsageError(f"--vary {condition}: {problem[:1].lower()}{problem[1:]}") from None
        except RecipeValueError as error:
            raise UsageError(f"--vary {condition}: {error.message}") from None
        except ValueError as error:
            raise UsageError(f"--vary {condition}: {error}") from None
        if not draft.is_other:
            unchanged.append(condition)
    return unchanged


def _maker(condition: Condition) -> Apply:
    name = condition.name
    if name in KINDS:
        return KINDS[name].apply
    if name.startswith(ENVIRONMENT_PREFIX):
        return lambda draft, value: draft.set(name.removeprefix(ENVIRONMENT_PREFIX), value)
    return lambda draft, value: draft.set_keys({name: _key_value(name, value)})


def _key_value(name: str, text: str) -> object:
    value: object = parse_scalar(text)
    # The worker may be in another working directory; a hub id stays as it is.
    if name in _PATH_KEYS and isinstance(value, str) and Path(value).exists():
        return os.path.abspath(value)  # noqa: PTH100 - keeps symbolic links
    return value
