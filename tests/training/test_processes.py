"""Several processes compute what one does: how they share the work, talk, and hold a model.

The processes are real, forked by one that has imported everything: a start costs next to nothing.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from mltune_cli.bundled import bundled_data
from mltune_cli.launching.environment import worker_environment
from mltune_cli.launching.events import EventPipe
from mltune_cli.launching.job import TrainingJob
from mltune_cli.manifest import read_manifest
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.determinism import settle
from mltune_cli.training.loop import Surroundings, train
from mltune_cli.training.processes import (
    LostProcessError,
    Processes,
    alone,
    is_loss_of_process,
    join_processes,
)

CPU = torch.device("cpu")
Crew = Callable[..., list[int]]
SmokeRecipe = Callable[..., Recipe]
Train = Callable[..., Path]


def of(rank: int, size: int) -> Processes:
    return Processes(rank, rank, tuple(range(size)), CPU)


@given(count=st.integers(1, 60), size=st.integers(1, 12), in_step=st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_micro_batch_counts_once_whoever_computes_it(
    count: int, size: int, in_step: bool
) -> None:
    """Also where there are more processes than micro-batches, as with few held-out rows."""
    turns = [of(rank, size).turns(count, in_step=in_step) for rank in range(size)]
    counted = [turn.index for own in turns for turn in own if turn.counts]
    assert counted == list(range(count)), "in the order of ranks, each once"
    assert [list(share) for share in of(0, size).shares(count)] == [
        [turn.index for turn in own if turn.counts] for own in turns
    ]


@given(count=st.integers(1, 60), size=st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_in_step_all_have_as_many_turns_and_none_is_wasted(count: int, size: int) -> None:
    turns = [of(rank, size).turns(count, in_step=True) for rank in range(size)]
    assert {len(own) for own in turns} == {-(-count // size)}
    for own in turns:
        spare = [turn for turn in own if not turn.counts]
        assert len(spare) <= 1
        assert own[len(own) - len(spare) :] == spare, "what is thrown away comes last"
        assert all(0 <= turn.index < count for turn in own)
    free = [of(rank, size).turns(count, in_step=False) for rank in range(size)]
    assert all(turn.counts for own in free for turn in own)


def test_a_process_that_is_alone_talks_to_itself() -> None:
    processes = alone(CPU)
    tensor = torch.arange(3)
    assert processes.gather(tensor) == [tensor]
    assert processes.gather_values({"a": None}) == [{"a": None}]
    assert processes.gather_words([2**64 - 1]) == [[2**64 - 1]]
    assert (processes.agree(130), processes.size, processes.is_writer) == (130, 1, True)
    processes.barrier()
    processes.broadcast(tensor)
    assert tensor.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "is_loss"),
    [
        (LostProcessError("gone"), True),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection"), True),
        (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1"), True),
        (torch.distributed.DistNetworkError("the client socket has failed to connect"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("a file called gloo/pair.cc"), False),
    ],
)
def test_only_the_loss_of_a_process_is_gone_on_from(error: Exception, is_loss: bool) -> None:
    """Any other error would come again, for ever."""
    assert is_loss_of_process(error) == is_loss


# What the forked processes do. `order` comes from the test, through a pipe.
NASTY = [None, True, -0.0, 5e-324, 2**62, "\u2028\U0001f600", {"": [[], {}]}, 'x" \\ \n' * 30_000]


def talk(rank: int, order: dict[str, Any]) -> None:
    """Say all kinds of things to the others, and write down what was heard."""
    processes = join_processes("cpu", order["node_ranks"][rank])
    own = processes.rank
    heard: dict[str, Any] = {"torch_rank": rank, "rank": own}
    # The first says as little as can be, the second a quarter of a megabyte.
    heard["values"] = processes.gather_values(NASTY if own == 1 else own)
    heard["words"] = processes.gather_words([2**64 - 1, 1 << 63, own])
    heard["agreed"] = processes.agree([130, 0, 143][own])
    tensor = torch.full((2, 3), float(own))
    processes.broadcast(tensor)
    heard["broadcast"] = tensor.tolist()
    heard["gathered"] = [t.tolist() for t in processes.gather(torch.tensor([[own, -own]]))]
    cache = Path(order["folder"]) / f"cache-of-node-{order['node_ranks'][rank]}"
    with processes.node_leader_first():
        heard["found_cache"] = cache.exists()
        time.sleep(0.3)
        cache.touch()
    (Path(order["folder"]) / f"{own}.json").write_text(json.dumps(heard))


def lose_one(rank: int, order: dict[str, Any]) -> None:
    """Let one process go without a word; the others must notice it, and say what it is."""
    processes = join_processes("cpu", 0)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.monotonic()
    try:
        while True:
            processes.barrier()
    except LostProcessError:
        os._exit(75 if time.monotonic() - started < 20 else 3)


def train_along(rank: int, order: dict[str, Any]) -> None:
    """Train as one of several workers."""
    job = TrainingJob.model_validate_json(order["job"])
    meet = partial(join_processes, node_rank=0) if order["size"] > 1 else None
    train(job, Surroundings(EventPipe(None), meet=meet))


def serve() -> None:
    """Fork the processes of each run that is asked for, and tell how they ended."""
    warnings.simplefilter("ignore")
    settle(1)
    for line in sys.stdin:
        order = json.loads(line)
        pids = [start(rank, order) for rank in range(order["size"])]
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(ends), flush=True)  # noqa: T201 - the answer


def start(rank: int, order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    places = (rank, order["local_ranks"][rank], order["size"], "127.0.0.1", order["port"])
    os.environ |= dict(zip(names, map(str, places), strict=True)) | {"GLOO_SOCKET_IFNAME": "lo"}
    try:
        globals()[order["task"]](rank, order)
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Run a task in several processes: `crew("talk", size=2, ...)` returns their exit statuses."""
    folder = tmp_path_factory.mktemp("crew")
    program = f"import runpy; runpy.run_path({__file__!r})['serve']()"
    environment = worker_environment(Recipe(), os.environ) | {
        "HF_HUB_OFFLINE": "1", "MLTUNE_CACHE": str(folder / "cache"),
    }  # fmt: skip
    with (folder / "stderr").open("w+") as errors:
        server = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, text=True, env=environment, start_new_session=True,
        )  # fmt: skip

        def run(task: str, size: int, **order: Any) -> list[int]:
            common = {"task": task, "size": size, "port": free_port()}
            local_ranks = {"local_ranks": list(range(size))}
            server.stdin.write(json.dumps(common | local_ranks | order) + "\n")
            server.stdin.flush()
            assert select.select([server.stdout], [], [], 120)[0], "the processes hang"
            ends = json.loads(server.stdout.readline())
            if 1 in ends:
                errors.seek(0)
                raise AssertionError(errors.read())
            return ends

        yield run
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate(timeout=30)


def test_everybody_hears_everything_in_the_order_of_the_machines(
    crew: Crew, tmp_path: Path
) -> None:
    """A rendezvous numbers processes as they come; ours stay with the machine that has the files.

    Here torch's ranks 0 and 1 are on machine 1, and its rank 2 is machine 0.
    """
    ends = crew("talk", 3, folder=str(tmp_path), node_ranks=[1, 1, 0], local_ranks=[0, 1, 0])
    assert ends == [0, 0, 0]
    heard = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [one["torch_rank"] for one in heard] == [2, 0, 1]
    for one in heard:
        assert one["values"] == [0, NASTY, 2]
        assert str(one["values"][1][2]) == "-0.0"
        assert one["words"] == [[2**64 - 1, 1 << 63, rank] for rank in range(3)]
        assert one["agreed"] == 143
        assert one["broadcast"] == [[0.0] * 3] * 2, "the writer's"
        assert one["gathered"] == [[[rank, -rank]] for rank in range(3)]
    assert [one["found_cache"] for one in heard] == [False, False, True]


def test_a_process_that_is_gone_is_noticed_at_once(crew: Crew) -> None:
    assert crew("lose_one", 3) == [75, -signal.SIGKILL, 75]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three held-out rows: two micro-batches, so that one of three processes has none."""
    path = tmp_path_factory.mktemp("rows") / "held_out.jsonl"
    rows = bundled_data("mltune/repro_dataset/val.jsonl").read_text().splitlines()
    path.write_text("\n".join(rows[:3]) + "\n")
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs lie that several tests compare with."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def trained(crew: Crew, kept: Path, held_out: Path, smoke_recipe: SmokeRecipe) -> Train:
    """Train on so many processes, once for each name: `trained("name", 2, adapter__rank=4)`."""

    def run(name: str, size: int, *, resume: bool = False, **values: Any) -> Path:
        folder = kept / name
        if folder.exists() and not resume:
            return folder
        recipe = smoke_recipe(
            output_dir=str(folder), data__validation=str(held_out), evaluate__every_steps=2,
            checkpoint__every_steps=2, adapter__dropout=0.1, **values,
        )  # fmt: skip
        job = TrainingJob(
            recipe=recipe, origins={}, recipe_name="t", runs_folder="/none", resume=resume
        )
        assert crew("train_along", size, job=job.model_dump_json()) == [0] * size
        return folder

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Return what must repeat: logs, witness, and all that was trained."""
    logs = ("training_log.jsonl", "witness.jsonl", "evaluation_log.jsonl", "last_loss.txt")
    files = [folder / name for name in logs]
    files += [p for sub in ("adapter", "model", "best") for p in (folder / sub).rglob("*")]
    found = {str(p.relative_to(folder)): p.read_bytes() for p in files if p.is_file()}
    assert len(found) >= 10
    return found


LORA: dict[str, Any] = {}
DORA = {"adapter__method": "dora", "train__activation_checkpointing": True}
FULL = {"adapter__method": "full", "train__learning_rate": 1e-4}
ODD = {"train__micro_batches_per_step": 5, "data__packing": True}
# The kernels of a GPU, in pieces and whole: a divided model's output layer is never alone.
FAST = {
    "model__attention": "varlen", "adapter__compute_dtype": "model", "model__dtype": "bfloat16",
    "data__packing": True,
}  # fmt: skip
PIECES = FAST | {"train__loss_kernel": "chunked"}


@pytest.mark.parametrize(
    ("recipe", "name", "size", "sharding"),
    [
        pytest.param(PIECES, "pieces", 2, "none", id="fast kernels, on 2"),
        pytest.param(FAST, "fast", 2, "fsdp", id="fast kernels, sharded over 2"),
        pytest.param(LORA, "lora", 2, "fsdp", id="LoRA, sharded over 2"),
        pytest.param(LORA, "lora", 4, "fsdp", id="LoRA, sharded over 4", marks=pytest.mark.long),
        pytest.param(DORA, "dora", 3, "fsdp", id="DoRA, recomputed activations, over 3"),
        pytest.param(DORA, "dora", 2, "fsdp", id="the same over 2", marks=pytest.mark.long),
        pytest.param(FULL, "full", 2, "none", id="all parameters, on 2"),
        pytest.param(FULL, "full", 3, "none", id="all parameters, on 3", marks=pytest.mark.long),
        pytest.param(ODD, "odd", 3, "none", id="5 packed, on 3", marks=pytest.mark.long),
        pytest.param(ODD, "odd", 3, "fsdp", id="the same, sharded", marks=pytest.mark.long),
    ],
)
def test_several_processes_train_what_one_does(
    trained: Train, recipe: dict[str, Any], name: str, size: int, sharding: str
) -> None:
    one = trained(f"{name}-1", 1, **recipe)
    several = trained(f"{name}-{size}-{sharding}", size, **recipe, model__sharding=sharding)
    assert contents(several) == contents(one)
    ours, theirs = read_manifest(several), read_manifest(one)
    assert (ours.processes, theirs.processes) == (size, 1)
    assert (ours.process_counts, theirs.process_counts) == ([size], [1])
    assert ours.model == theirs.model, "whole sizes and digests, not those of a part"
    assert all(claim.holds for claim in ours.claims)


def test_a_sharded_full_model_repeats_goes_on_and_claims_no_more_than_that(
    trained: Train, kept: Path
) -> None:
    sharded = FULL | {"model__sharding": "fsdp"}
    first, second = trained("divided", 2, **sharded), trained("divided-again", 2, **sharded)
    assert contents(first) == contents(second)
    refused = [claim for claim in read_manifest(first).claims if not claim.holds]
    assert [claim.name for claim in refused] == ["any number of processes"]
    assert "gradients that are divided" in refused[0].reason
    make_unfinished(second)
    mark = second / "checkpoints" / "step-000002" / "complete.json"
    written = mark.stat().st_mtime_ns
    trained("divided-again", 2, resume=True, **sharded)
    assert mark.stat().st_mtime_ns == written, "gone on from, not trained anew"
    assert contents(second) == contents(first)
    reloaded = AutoModelForCausalLM.from_pretrained(second / "model", dtype=torch.float32)
    assert sum(p.numel() for p in reloaded.parameters()) == read_manifest(second).model.parameters


def make_unfinished(folder: Path) -> None:
    """Make a run of all parameters one that was killed before it wrote what it trained."""
    shutil.rmtree(folder / "model")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["result"] = {"status": "running", "steps": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_sharded_full_model_that_went_on_with_fewer_is_not_claimed_to_repeat(
    trained: Train, kept: Path
) -> None:
    """It is the run of neither number of processes, and nothing in its folder would tell."""
    sharded = FULL | {"model__sharding": "fsdp"}
    folder = Path(shutil.copytree(trained("divided", 2, **sharded), kept / "divided-then-one"))
    assert read_manifest(folder).process_counts == [2]
    make_unfinished(folder)
    trained("divided-then-one", 1, resume=True, **sharded)
    manifest = read_manifest(folder)
    assert (manifest.processes, manifest.process_counts) == (1, [1, 2])
    assert [claim.holds for claim in manifest.claims] == [False, False]
    assert manifest.claims[0].reason.endswith("its steps were taken by 1 and 2 of them")
