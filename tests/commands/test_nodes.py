"""Several machines train the bytes of one, meet in bounded time, and may lose one another.

A machine is a launcher of its own, on loopback or in a network namespace of its own.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MltuneRun = Callable[..., Any]
Repeated = Callable[[Path], dict[str, bytes]]
Arguments = tuple[str, ...]
# `launch` returns one, see `conftest.py`; each here is one of the machines of a run.
Machine = Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def machine(
    launch: Callable[..., Machine], saving: Arguments, tmp_path: Path
) -> Callable[..., Machine]:
    """Start a machine: `machine(rank, endpoint, "--nproc-per-node", "2")`."""

    def begin(
        rank: int, endpoint: str, *arguments: str, nodes: str = "2", within: tuple[str, ...] = ()
    ) -> Machine:
        place = ("--nnodes", nodes, "--node-rank", str(rank), "--rdzv-endpoint", endpoint)
        words = (*saving, *place, "--output-dir", "run", *arguments)
        return launch(*words, folder=tmp_path / f"machine-{rank}", within=within)

    return begin


def require_the_bytes_of_one(
    first: Machine, second: Machine, undisturbed: Path, repeated_files: Repeated
) -> None:
    for one in (first, second):
        code, printed = one.end()
        assert code == 0, printed
        assert "on 3 processes" in printed
        assert "started again" not in printed
    assert repeated_files(first.folder / "run") == repeated_files(undisturbed)
    assert not (second.folder / "run").exists(), "machine 0 has the files"
    manifest = json.loads((first.folder / "run" / "manifest.json").read_text())
    assert manifest["processes"] == 3
    assert len(manifest["environment_classes"]) == 1
    assert all(claim["holds"] for claim in manifest["claims"])


def test_two_machines_train_the_bytes_of_one(
    machine: Callable[..., Machine], undisturbed: Path, repeated_files: Repeated
) -> None:
    """Two processes here and one there; machine 1 is there first, so torch numbers it first."""
    address = own_address()
    endpoint = f"{address}:{free_port()}"
    second = machine(1, endpoint, "--nproc-per-node", "1")
    time.sleep(0.5)
    first = machine(0, endpoint, "--nproc-per-node", "2")
    second.wait_for(lambda: second.variables("GLOO_SOCKET_IFNAME", "training.worker"))
    (interface,) = second.variables("GLOO_SOCKET_IFNAME", "training.worker")
    assert (interface == "lo") == (address == "127.0.0.1"), "over what leads to the other machine"
    require_the_bytes_of_one(first, second, undisturbed, repeated_files)


def own_address() -> str:
    """Return this machine's address where it has a way out, else that of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1: an address that is nobody's
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@pytest.fixture
def two_networks() -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """Join two network namespaces by a cable; return how to enter each, and the first's address."""
    names = [f"mltune-{os.getpid()}-{number}" for number in (0, 1)]
    ends = [f"mt{os.getpid() % 100_000}{letter}" for letter in "ab"]
    steps = [["ip", "netns", "add", name] for name in names]
    steps += [["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]]]
    for number, (name, end) in enumerate(zip(names, ends, strict=True)):
        inside = ["ip", "-n", name]
        steps += [
            ["ip", "link", "set", end, "netns", name],
            [*inside, "address", "add", f"10.77.0.{number + 1}/24", "dev", end],
            [*inside, "link", "set", end, "up"],
            [*inside, "link", "set", "lo", "up"],
        ]
    try:
        for step in steps:
            try:
                done = subprocess.run(step, capture_output=True, text=True, timeout=20)
            except FileNotFoundError:
                pytest.skip("network namespaces need iproute2")
            if done.returncode:
                pytest.skip(f"network namespaces need root here: {done.stderr.strip()}")
        enter = [("ip", "netns", "exec", name) for name in names]
        yield enter[0], enter[1], "10.77.0.1"
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=20)


@pytest.mark.long
def test_machines_with_networks_of_their_own_find_the_way_between_them(
    machine: Callable[..., Machine],
    two_networks: tuple[tuple[str, ...], tuple[str, ...], str],
    undisturbed: Path,
    repeated_files: Repeated,
) -> None:
    """Their host name leads nowhere, and loopback ends at each machine's own border."""
    here, there, address = two_networks
    endpoint = f"{address}:29400"
    first = machine(0, endpoint, "--nproc-per-node", "2", within=here)
    second = machine(1, endpoint, "--nproc-per-node", "1", within=there)
    require_the_bytes_of_one(first, second, undisturbed, repeated_files)


@pytest.mark.long
def test_a_machine_that_is_lost_changes_no_bit(
    machine: Callable[..., Machine], undisturbed: Path, repeated_files: Repeated
) -> None:
    """It is missed after some 20 seconds, and waited for another 15."""
    endpoint = f"127.0.0.1:{free_port()}"
    first = machine(0, endpoint, nodes="1:2")
    second = machine(1, endpoint, nodes="1:2")
    first.wait_for(lambda: first.witnessed() >= 4)
    assert json.loads((first.folder / "run" / "manifest.json").read_text())["processes"] == 2
    second.kill_all()
    code, printed = first.end(150)
    assert code == 0, printed
    assert "going on after step" in printed
    assert repeated_files(first.folder / "run") == repeated_files(undisturbed)
    assert json.loads((first.folder / "run" / "manifest.json").read_text())["processes"] == 1


@pytest.mark.long
def test_a_machine_that_joins_late_is_not_told_as_a_death(
    machine: Callable[..., Machine], mltune: MltuneRun, repeated_files: Repeated, saving: Arguments
) -> None:
    """Training goes on from a checkpoint then; without any, it would start at step 0."""
    endpoint = f"127.0.0.1:{free_port()}"
    longer = ("--set", "train.max_steps=150", "--set", "evaluate.every_steps=75")
    first = machine(0, endpoint, *longer, nodes="1:2")
    first.wait_for(lambda: first.witnessed() >= 4)
    second = machine(1, endpoint, *longer, nodes="1:2")
    for one in (first, second):
        code, printed = one.end(300)
        assert code == 0, printed
        assert "a process died" not in printed
        if one is first:
            assert printed.count("more machines joined, and all were started again") == 1
            assert "going on after step" in printed
    manifest = json.loads((first.folder / "run" / "manifest.json").read_text())
    assert (manifest["processes"], manifest["process_counts"]) == (2, [1, 2])
    alone = mltune("train", *saving, *longer, "--output-dir", "alone", cwd=first.folder)
    assert alone.code == 0, alone.stderr
    assert repeated_files(first.folder / "run") == repeated_files(first.folder / "alone")


@pytest.mark.long
def test_a_signal_on_any_machine_stops_all_with_one_checkpoint(
    machine: Callable[..., Machine],
    mltune: MltuneRun,
    undisturbed: Path,
    repeated_files: Repeated,
    saving: Arguments,
) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    first, second = machine(0, endpoint), machine(1, endpoint)
    run = first.folder / "run"
    first.wait_for(lambda: first.witnessed() >= 3)
    second.process.send_signal(signal.SIGTERM)
    for one in (second, first):
        code, printed = one.end()
        assert code == 143, printed
        assert "go on with --resume" in printed
    steps = json.loads((run / "manifest.json").read_text())["result"]["steps"]
    assert (run / "checkpoints" / f"step-{steps:06d}" / "complete.json").is_file()
    again = mltune("train", *saving, "--output-dir", "run", "--resume", cwd=first.folder)
    assert again.code == 0, again.stderr
    assert repeated_files(run) == repeated_files(undisturbed)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        pytest.param(
            ("--set", "data.train=rows.jsonl",
             "--set", "data.validation=mltune/repro_dataset/val.jsonl"),
            "training data (was ", id="rows",
        ),
        pytest.param(
            ("--seed", "3"), "reproducibility.seed (was ", id="seed", marks=pytest.mark.long
        ),
        pytest.param(
            ("--set", "evaluate.every_steps=2"), "evaluate.every_steps (was ", id="cadence",
            marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_a_machine_with_another_recipe_or_other_rows_is_refused_by_all(
    machine: Callable[..., Machine], tmp_path: Path, other: tuple[str, ...], named: str
) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    rows = "".join(f'{{"text": "row number {number}"}}\n' for number in range(30))
    (tmp_path / "rows.jsonl").write_text(rows)
    other = tuple(part.replace("rows.jsonl", str(tmp_path / "rows.jsonl")) for part in other)
    machines = machine(0, endpoint), machine(1, endpoint, *other)
    for one in machines:
        code, printed = one.end()
        assert code == 2, printed
        last = printed.splitlines()[-1]
        assert "do not train the same" in last
        assert named in last
        assert "Traceback" not in printed
        assert not (one.folder / "run").exists()


@pytest.mark.parametrize(
    ("rank", "sentence"),
    [
        (0, "fewer than 2 machines came within 3 seconds; start them all, or raise --rdzv-timeout"),
        (1, "machine 0 does not answer there; is it started, and is the port open?"),
    ],
)
def test_a_machine_that_is_alone_waits_no_longer_than_it_was_told(
    machine: Callable[..., Machine], rank: int, sentence: str
) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    alone = machine(rank, endpoint, "--rdzv-timeout", "3")
    code, printed = alone.end(60)
    assert code == 125, printed
    assert printed == f"mltune: --rdzv-endpoint {endpoint}: {sentence}\n"
    assert not (alone.folder / "run").exists()


def test_a_port_that_is_taken_is_the_users_mistake(machine: Callable[..., Machine]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        endpoint = f"127.0.0.1:{holder.getsockname()[1]}"
        code, printed = machine(0, endpoint, "--rdzv-timeout", "3").end(60)
    assert code == 2, printed
    assert printed == (
        f"mltune: --rdzv-endpoint {endpoint}: the port is taken on this machine; choose another\n"
    )


def test_a_host_that_nobody_knows_is_the_users_mistake(machine: Callable[..., Machine]) -> None:
    alone = machine(1, "no-such-host.invalid:29400")
    code, printed = alone.end(60)
    assert code == 2, printed
    assert "--rdzv-endpoint no-such-host.invalid:29400: no-such-host.invalid cannot be" in printed
    assert printed.count("\n") == 1
    assert not (alone.folder / "run").exists()


@pytest.mark.long
def test_a_listener_that_says_nothing_is_not_waited_for_without_end(
    machine: Callable[..., Machine],
) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        endpoint = f"127.0.0.1:{mute.getsockname()[1]}"
        code, printed = machine(1, endpoint, "--rdzv-timeout", "3").end(60)
    assert code == 125, printed
    assert f"--rdzv-endpoint {endpoint}: something listens there and does not answer" in printed


@pytest.mark.long
def test_one_signal_ends_the_wait_for_machine_0(machine: Callable[..., Machine]) -> None:
    waiting = machine(1, f"127.0.0.1:{free_port()}")
    time.sleep(8)
    waiting.process.send_signal(signal.SIGINT)
    code, printed = waiting.end(20)
    assert code == 130, printed


MEETING = ("--node-rank", "0", "--rdzv-endpoint", "127.0.0.1:29400")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        *(
            (("--nnodes", nodes, *MEETING), f"--nnodes {nodes}: must be a number of machines, or ")
            for nodes in ("0", "x", "2:1", "0:2", "1:", ":2", "-1", "1.5", "", "99999999")
        ),
        (("--nnodes", "2"), "--nnodes 2: needs --rdzv-endpoint as well"),
        (("--nnodes", "2", "--node-rank", "0"), "--nnodes 2: needs --rdzv-endpoint as well"),
        (("--nnodes", "2", *MEETING[2:]), "--nnodes 2: needs --node-rank as well"),
        (MEETING[:2], "--node-rank: has no meaning on one machine; add --nnodes or drop it"),
        (MEETING[2:], "--rdzv-endpoint: has no meaning on one machine; add --nnodes or drop it"),
        (
            ("--nnodes", "1:2", "--node-rank", "2", *MEETING[2:]),
            "--node-rank 2: of 2 machines the last one is 1",
        ),
        (("--nnodes", "2", "--node-rank", "-1", *MEETING[2:]), "Invalid value for '--node-rank'"),
        *(
            (
                ("--nnodes", "2", "--node-rank", "0", "--rdzv-endpoint", endpoint),
                f"--rdzv-endpoint {endpoint}: must be HOST:PORT of machine 0, such as 10.0.0.1:",
            )
            for endpoint in ("host", "host:", ":29400", "host:0", "host:65536", "host:x", "h:-1")
        ),
        (("--nnodes", "5", *MEETING), "--nproc-per-node: 5 processes are more than the 4 micro-"),
        (("--rdzv-timeout", "0"), "Invalid value for '--rdzv-timeout'"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(
    mltune: MltuneRun, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    result = mltune("train", *arguments, "--output-dir", "run", cwd=tmp_path)
    assert result.code == 2, result.stderr
    assert result.stderr.startswith(f"mltune: {sentence}")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
