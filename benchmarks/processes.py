"""Equal bits on any number of processes, and what they cost.

`python benchmarks/processes.py MODEL_DIR --processes 1 2 4` trains the same recipe with each number
of processes, and a recipe with a sharded base on one process and on the most (`--no-sharded` leaves
that out), compares every byte that repeats, and reports the median time of a step. Then it takes
the steps of one run with the fixed tree and with a plain all-reduce in turn, and reports the ratio
of their medians. `--json FILE` keeps the figures.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

REPEATED = ("witness.jsonl", "training_log.jsonl", "adapter/adapter_model.safetensors")
_WARM_UP = 3


def settings(folder: Path, steps: int, tokens: int, packs: int = 1) -> dict[str, str]:
    """Return the recipe as `--set` pairs: LoRA on all linear layers, bf16.

    Args:
        folder: as `benchmarks/shapes.py` wrote it.
        steps: of the run.
        tokens: of a pack.
        packs: of a micro-batch; a step has eight micro-batches.
    """
    return {
        "model.name_or_path": str(folder / "model"),
        "model.dtype": "bfloat16",
        "model.device": "auto",
        "data.train": str(folder / "train.jsonl"),
        "data.validation": "null",
        "data.format": "text",
        "data.max_length": str(tokens),
        "data.packing": "true",
        "data.loss_on": "all",
        "adapter.rank": "16",
        "adapter.dropout": "0.1",
        "train.max_steps": str(steps),
        "train.warmup_steps": "2",
        "train.micro_batch_size": str(packs),
        "train.micro_batches_per_step": "8",
        "train.learning_rate": "1e-4",
        "evaluate.every_steps": "0",
    }


def train(folder: Path, name: str, pairs: dict[str, str], processes: int) -> Path:
    """Train once; return the run folder.

    Raises:
        subprocess.CalledProcessError: training failed.
    """
    run = folder / name
    command = [sys.executable, "-m", "mltune_cli", "train", "--output-dir", str(run)]
    command += ["--overwrite", "--max-restarts", "0", "--nproc-per-node", str(processes)]
    for key, value in pairs.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, check=True)
    return run


def step_seconds(run: Path) -> float:
    """Return the median time of a run's steps, the first ones left out."""
    lines = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    return statistics.median(line["seconds"] for line in lines[_WARM_UP:])


def peak_bytes(run: Path) -> int:
    """Return the memory that the first process used at most."""
    return int(
        json.loads((run / "timings.jsonl").read_text().splitlines()[-1])["peak_memory_bytes"]
    )


def different_files(a: Path, b: Path) -> list[str]:
    """Name the repeated files whose bytes differ."""
    return [name for name in REPEATED if (a / name).read_bytes() != (b / name).read_bytes()]


def all_reduced_share(own, shares, gather, piece_elements=0):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """Add up as data-parallel training does: each process its share, then all shares at once."""
    total = own[0]
    for vector in own[1:]:
        total = total + vector
    torch.distributed.all_reduce(total)
    return total


def compare_reductions(pairs: dict[str, str], steps: int) -> None:
    """Take steps with the tree and with an all-reduce in turn; print the medians as JSON.

    Runs in each of the processes that `torchrun` starts.
    """
    from functools import partial

    from mltune_cli.recipe.layers import load_recipe
    from mltune_cli.training import gradients
    from mltune_cli.training.compiling import compile_ahead
    from mltune_cli.training.determinism import settle
    from mltune_cli.training.processes import join_processes
    from mltune_cli.training.setup import prepare_run
    from mltune_cli.training.step import StepPlan, begin_step

    settle(1)
    assignments = [f"{key}={value}" for key, value in pairs.items()]
    recipe = load_recipe(None, {}, assignments).recipe
    run = prepare_run(recipe, partial(join_processes, node_rank=0))
    if run.recipe.model.compile:
        compile_ahead(run.state, run.recipe)
    collator = run.collator(run.train_data)
    tree = gradients.sum_over_processes
    kinds = {"tree": tree, "all_reduce": all_reduced_share}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    indices = run.processes.shares(8)[run.processes.rank]
    for step in range(1, steps + 1):
        kind = ("tree", "all_reduce")[step % 2]
        gradients.sum_over_processes = kinds[kind]
        batches = [collator.collate(run.stream.micro_batch(step, index)) for index in indices]
        tokens = 8 * recipe.train.micro_batch_size * recipe.data.max_length
        plan = StepPlan(8, tokens, 0, 1e-5, 1.0)
        run.processes.barrier()
        start = time.perf_counter()
        begin_step(run.state, run.processes, batches, plan).result()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if step > 2 * _WARM_UP:
            seconds[kind].append(time.perf_counter() - start)
    if run.processes.is_writer:
        print(json.dumps({kind: statistics.median(times) for kind, times in seconds.items()}))


def main() -> None:
    """Train, compare, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="as benchmarks/shapes.py wrote it")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a pack")
    parser.add_argument("--packs", type=int, default=1, help="of a micro-batch; a step has eight")
    parser.add_argument("--no-sharded", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compare-reductions", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    pairs = settings(folder, arguments.steps, arguments.tokens, arguments.packs)
    if arguments.compare_reductions:
        compare_reductions(pairs, arguments.steps)
        return
    report: dict[str, object] = {"torch": torch.__version__, "runs": {}}
    if torch.cuda.is_available():
        report["device"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    most = max(arguments.processes)
    runs = {str(count): train(folder, f"on-{count}", pairs, count) for count in arguments.processes}
    # Another recipe, with kernels that can compute a divided model: compared among themselves.
    sharded = pairs | {"model.sharding": "fsdp"}
    references = dict.fromkeys(runs, next(iter(runs.values())))
    for count in () if arguments.no_sharded or most == 1 else (1, most):
        name = f"{count}, recipe with a sharded base"
        runs[name] = train(folder, f"sharded-on-{count}", sharded, count)
        references[name] = runs["1, recipe with a sharded base"]
    figures = {
        name: {
            "different": different_files(references[name], run),
            "step_seconds": step_seconds(run),
            "peak_memory_bytes": peak_bytes(run),
        }
        for name, run in runs.items()
    }
    report["runs"] = figures
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(most), __file__, str(folder), "--compare-reductions"]
    command += ["--steps", "40", "--tokens", str(arguments.tokens)]
    command += ["--packs", str(arguments.packs)]
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONHASHSEED": "0"},
    ).stdout  # fmt: skip
    medians = json.loads(output.strip().splitlines()[-1])
    report["reductions"] = medians | {"ratio": medians["tree"] / medians["all_reduce"]}
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
