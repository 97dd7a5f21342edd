"""The planted faults: which script, under which condition, and what repro-check must say of it.

`docs/causes.md` is written from this list and from `rows.py`. Only the standard library is
imported, so that the documentation can be written without torch.
"""

from dataclasses import dataclass
from typing import Literal

Framework = Literal["plain", "HF Trainer", "TRL", "Lightning", "accelerate", "torchrun"]

# Program and arguments before a script; `{bin}` is the folder of the environment's programs.
# accelerate starts one process with --cpu, however many are asked for; the scripts say cpu=True.
_LAUNCHERS: dict[str, tuple[str, ...]] = {
    "torchrun": ("{bin}/torchrun", "--nproc-per-node", "2"),
    "accelerate": (
        "{bin}/accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A script that does not repeat, and what is known about why.

    Attributes:
        script: in `scripts/`, without its ending.
        row: of the table of causes; None for what the table does not number.
        cause: what the diagnosis must name.
        step: at which the runs part; 0 is before the first, and None any one, as a race shows it.
        stages: of that step, one of which must be the first to differ.
        framework: that trains.
        arguments: of the script. `{model}` and `{data}` are the bundled ones, `{made}` the folder
            that `prepared` filled, `{run}` each run's own folder.
        vary: what follows `--vary`.
        operation: must be part of the name of the operation at which they part.
        frame: must be part of the line of the user's code, as the report has it.
        process: in which they part.
        prepared: what must lie in `{made}`; see `preparations.py`.
        env: of both runs.
        needs_rounding: a processor that takes a lower precision for products, where it may.
        is_long: left to `nox -s long`.
    """

    script: str
    row: int | None
    cause: str
    step: int | None
    stages: tuple[str, ...]
    framework: Framework = "plain"
    arguments: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()
    operation: str | None = None
    frame: str | None = None
    process: str | None = None
    prepared: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    needs_rounding: bool = False
    is_long: bool = True

    @property
    def name(self) -> str:
        """A name for the test."""
        return self.script + "".join(f" {one.partition('=')[0]}" for one in self.vary)

    def command(self, scripts: str, programs: str) -> list[str]:
        """Return program and arguments.

        Args:
            scripts: folder of the scripts.
            programs: folder of the environment's programs.
        """
        launcher = _LAUNCHERS.get(self.framework, ("{bin}/python",))
        started = [part.replace("{bin}", programs) for part in launcher]
        return [*started, f"{scripts}/{self.script}.py", *self.arguments]


_HF = ("{model}", "{run}")
_HF_DATA = ("{model}", "{data}", "{run}")

BY_REPETITION = (
    Fault("plain_unseeded_init", 1, "unseeded-initialisation", 0, ("parameters",),
          operation="uniform_", frame="plain_unseeded_init.py:5", is_long=False),
    Fault("trainer_unseeded_adapter", 1, "seed-after-initialisation", 0, ("parameters",),
          "HF Trainer", _HF, is_long=False),
    Fault("plain_set_order", 7, "hash-seed", 1, ("batch",), is_long=False),
    Fault("trainer_set_order", 7, "hash-seed", 1, ("batch",), "HF Trainer", _HF_DATA),
    Fault("plain_lossy_cache", 9, "cold-cache", 1, ("batch",)),
    Fault("plain_uninitialised", 25, "uninitialised-memory", 1, ("loss",), operation="_to_copy",
          frame="in forward", is_long=False),
    Fault("plain_race", 17, "nondeterministic-operation", None, ("loss", "gradients"),
          operation="planted.pooled_sum", frame="plain_race.py", is_long=False),
    Fault("plain_untraced_write", None, "untraced-write", 3, ("loss",), operation="tanh",
          is_long=False),
    Fault("plain_one_ulp", None, "control-flow", 3, ("loss", "parameters"), operation="select"),
    Fault("plain_learning_rate", None, "hyperparameters", 1, ("hyperparameters",)),
    Fault("plain_clock_schedule", None, "clock", 3, ("hyperparameters",)),
    Fault("lightning_clock", None, "clock", 3, ("hyperparameters",), "Lightning"),
    Fault("plain_consumed_rng", None, "random-numbers-consumed", 3, ("rng",), operation="rand",
          frame="plain_consumed_rng.py:14"),
    Fault("plain_clock_in_rows", None, "clock", 1, ("batch",), frame="in __getitem__"),
    Fault("plain_unseeded_shuffle", None, "unseeded-random-numbers", 1, ("batch",)),
    Fault("plain_order_of_arrival", None, "data-order", 1, ("batch",)),
    Fault("plain_dropped_row", None, "data-content", 1, ("batch",)),
    Fault("plain_numpy_augmentation", None, "unseeded-random-numbers", 1, ("loss",)),
    Fault("plain_numpy_fill", None, "unseeded-random-numbers", 1, ("loss",), operation="addmm"),
    Fault("plain_two_models", None, "unseeded-random-numbers", 1, ("loss",), operation="addmm"),
    Fault("plain_recurrent", None, "unseeded-random-numbers", 1, ("rng",), operation="bernoulli",
          is_long=False),
    Fault("plain_statistics", None, "unseeded-random-numbers", 2, ("buffers",)),
    Fault("plain_unseeded_workers", None, "unseeded-random-numbers", 1, ("batch",)),
    Fault("plain_precision", None, "precision-setting", 1, ("loss",), needs_rounding=True),
    Fault("plain_default_dtype", None, "precision-setting", 1, ("loss", "gradients")),
    Fault("plain_control_flow", None, "control-flow", 2, ("loss",), operation="tanh"),
    Fault("lightning_unseeded_shuffle", None, "unseeded-random-numbers", 1, ("batch", "rng"),
          "Lightning"),
    Fault("trl_unseeded_order", None, "unseeded-random-numbers", 1, ("batch",), "TRL", _HF_DATA),
    Fault("ddp_one_rank", None, "random-numbers-consumed", 2, ("rng",), "torchrun",
          process="rank-1", is_long=False),
    Fault("accelerate_shuffle", None, "unseeded-random-numbers", 1, ("batch",), "accelerate",
          process="rank-1"),
    Fault("accelerate_noise", None, "unseeded-random-numbers", 1, ("loss",), "accelerate"),
)  # fmt: skip

_CAUSAL = ("--model", "{model}", "--tokenizer", "{model}", "--data", "{data}")
_OPTIONS = ("--model", "{model}", "--output", "{run}")

BY_VARIATION = (
    Fault("plain_worker_draws", 3, "loader-workers", 1, ("batch",), vary=("loader-workers=2",),
          is_long=False),
    Fault("plain_dataset_on_resume", 4, "resume", 2, ("rng_python", "loss"),
          arguments=("{run}",), vary=("kill-and-resume=2",)),
    Fault("trainer_dataset_on_resume", 4, "resume", 2, ("batch",), "HF Trainer", _HF,
          ("kill-and-resume=2",)),
    Fault("trainer_evaluation", 5, "argument", 2, ("rng",), "HF Trainer",
          _OPTIONS, ("argument=--eval_steps 1",)),
    Fault("plain_resume_without_rng", 6, "resume", 2, ("rng",), arguments=("{run}",),
          vary=("kill-and-resume=2",)),
    Fault("lightning_resume", 6, "resume", 2, ("batch", "rng"), "Lightning", ("{run}",),
          ("kill-and-resume=2",)),
    Fault("plain_shards", 8, "directory-order", 1, ("batch",), arguments=("{made}",),
          vary=("directory-order=reversed",), prepared="shards"),
    Fault("trl_dated_template", 10, "clock", 1, ("batch",), "TRL", _HF_DATA, ("clock=+1d",)),
    Fault("plain_causal_model", 11, "argument", 1, ("loss",), arguments=_CAUSAL,
          vary=("argument=--tokenizer {made}",), prepared="other-tokenizer"),
    Fault("plain_causal_model", 12, "argument", 0, ("parameters",), arguments=_CAUSAL,
          vary=("argument=--model {made}",), prepared="other-revision"),
    Fault("plain_dependency", 13, "environment-variable", 1, ("loss",),
          vary=("env.PYTHONPATH={made}/new",), prepared="two-versions",
          env=(("PYTHONPATH", "{made}/old"),)),
    Fault("trainer_attention", 14, "argument", 1, ("loss",), "HF Trainer", _OPTIONS,
          ("argument=--attn eager",)),
    Fault("plain_threads", 23, "thread-count", 1, ("loss",), vary=("threads=2",),
          operation="sum", env=(("OMP_NUM_THREADS", "1"),)),
    Fault("plain_kernels", 24, "instruction-set", 0, ("parameters",),
          vary=("instruction-set=default",)),
    Fault("ddp_world_size", 28, "argument", 1, ("loss", "missing"), "torchrun",
          vary=("argument=--nproc-per-node 1",)),
    Fault("plain_stale_checkpoint", 30, "resume", 4, ("optimizer",), arguments=("{run}",),
          vary=("kill-and-resume=4",)),
)  # fmt: skip

FAULTS = (*BY_REPETITION, *BY_VARIATION)
