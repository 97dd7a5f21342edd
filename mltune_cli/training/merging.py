"""The merging process: reads a job from standard input, merges, explains its failures.

Run as `python -P -m mltune_cli.training.merging EVENT_DESCRIPTOR`, in the environment that
`launching.environment` builds.
"""

import contextlib
import errno
import os
import shutil
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltune_cli.errors import (
    ExitCode,
    MltuneError,
    NoVerdictError,
    RecipeValueError,
    UsageError,
    is_machine_failure,
    is_out_of_memory,
)
from mltune_cli.launching.events import EventPipe, Failed, Notice
from mltune_cli.launching.merge_process import MergeJob
from mltune_cli.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from peft import PeftModel

    from mltune_cli.training.model import BaseModel

_NO_SPACE = os.strerror(errno.ENOSPC)


def main() -> int:
    """Run the job; return the process's exit status."""
    pipe = EventPipe(int(sys.argv[1]))
    try:
        job = MergeJob.model_validate_json(sys.stdin.buffer.read())
        _settle(job)
        merge(job, pipe)
    except MltuneError as error:
        return _explain(pipe, error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "the machine is out of memory: a merge needs the whole base model in it"
        return _explain(pipe, NoVerdictError(advice))
    return ExitCode.OK


def _settle(job: MergeJob) -> None:
    from mltune_cli.training.determinism import settle

    settle(job.recipe.reproducibility.threads)
    # What the libraries warn of is about their own ways of loading, or is checked here.
    warnings.filterwarnings("ignore")


def _explain(pipe: EventPipe, error: MltuneError) -> int:
    with contextlib.suppress(MltuneError):
        pipe.send(Failed(int(error.exit_code), error.message))
    return int(error.exit_code)


def merge(job: MergeJob, pipe: EventPipe) -> None:
    """Merge an adapter into its base and write the model.

    Args:
        job: what to merge.
        pipe: where notices go; they also end this process when nobody listens any more.

    Raises:
        UsageError: the base is not the one of the training, or the adapter does not fit it.
        NoVerdictError: the model cannot be written.
    """
    pipe.send(Notice(f"loading the base model {job.recipe.model.name_or_path}"))
    base = _unchanged_base(job)
    pipe.send(Notice(f"merging {job.adapter}"))
    model = _with_adapter(base, job)
    _require_own_weights(model, job)
    merged = _merged(model, job)
    pipe.send(Notice(f"writing {job.target}"))
    _write(merged, base, job)


def _unchanged_base(job: MergeJob) -> "BaseModel":
    """Load the base as it was trained on: unquantised, on the CPU, in the dtype it computed in."""
    import torch

    from mltune_cli.training.model import load_base_model, resolved_model_section

    recipe = job.recipe.with_values(
        {
            "model.device": "cpu",
            "model.base_precision": "dtype",
            "model.sharding": "none",
            "model.revision": job.revision or job.recipe.model.revision,
        }
    )
    try:
        base = load_base_model(
            resolved_model_section(recipe),
            full_precision_weights=False,
            device=torch.device("cpu"),
        )
    except RecipeValueError as error:
        raise UsageError(f"{job.run}/{MANIFEST_FILE}: {error.message}") from None
    given = recipe.model.name_or_path
    for what, was, now in (
        ("weights or configuration", job.model_digest, base.digest),
        ("tokenizer", job.tokenizer_digest, base.tokenizer_digest),
    ):
        if was != now:
            raise UsageError(
                f"{given}: its {what} changed since {job.run} was trained on it ({now} instead of "
                f"{was}); put the old model back, or train again"
            )
    return base


def _with_adapter(base: "BaseModel", job: MergeJob) -> "PeftModel":
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    try:
        model = PeftModel.from_pretrained(base.model, job.adapter)
        # peft passes over tensors that are missing, and would merge what it drew at random.
        needed = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
        with safe_open(Path(job.adapter) / "adapter_model.safetensors", framework="pt") as file:
            differing = sorted(needed ^ set(file.keys()))
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError,
        SafetensorError,
    ) as error:  # fmt: skip
        if is_machine_failure(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{job.adapter}: cannot be put on its base model: {first}") from None
    if differing:
        raise UsageError(
            f"{job.adapter}: does not fit its base model: {differing[0]} is in one of them alone"
        )
    return model


def _require_own_weights(model: "PeftModel", job: MergeJob) -> None:
    """Refuse an adapter on weights that the model uses in two places.

    Merged there, the adapter would act in both, and the model would compute something else.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    uses = Counter(
        parameter.data_ptr() for _, parameter in model.named_parameters(remove_duplicate=False)
    )
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        weight: Any = module.get_base_layer().weight
        if uses[weight.data_ptr()] > 1:
            short = name.removeprefix("base_model.model.")
            raise UsageError(
                f"--merge: the adapter of {job.run} is on {short}, whose weights the model uses in "
                "another place too, so merging would change both; drop --merge"
            )


def _merged(model: "PeftModel", job: MergeJob) -> Any:
    whole: Any = model
    try:
        return whole.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        # With safe_merge, peft refuses to merge what is not finite.
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"{job.adapter}: cannot be merged: {first}; drop --merge") from None


def _write(merged: Any, base: "BaseModel", job: MergeJob) -> None:
    from safetensors import SafetensorError

    from mltune_cli.training.model import TOKENIZER_FILES

    output = Path(job.output)
    try:
        merged.save_pretrained(str(output), safe_serialization=True)
        # Copied, not saved anew: so its bytes, and its digest, are those of the training.
        for name in TOKENIZER_FILES:
            if (base.folder / name).is_file():
                shutil.copyfile(base.folder / name, output / name)
    except SafetensorError as error:
        # Its own exception around an operating system's error, which is told in the text alone.
        problem = _NO_SPACE if _NO_SPACE in str(error) else str(error)
        raise NoVerdictError(f"{job.target}: cannot be written: {problem}") from None
    except OSError as error:
        raise NoVerdictError(f"{job.target}: cannot be written: {error.strerror}") from None
    except ValueError as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{base.name}: its merged model cannot be written: {first}; drop --merge"
        ) from None


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written and closed. Taking torch and its thousand modules down in good order
    # would take another second.
    os._exit(status)
