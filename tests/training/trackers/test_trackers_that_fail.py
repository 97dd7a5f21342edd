"""A tracker that is missing or cannot start stops the start; one that fails later stops nothing."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import mltune_cli
from mltune_cli.errors import RecipeValueError
from mltune_cli.training.trackers import Trackers, require_trackers

pytestmark = [
    # The packages' own, as in the worker: they are for their authors.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
NAMES = ("tensorboard", "wandb", "mlflow", "trackio")
SECRET = "s3cr3tValueOfTheUser"
Series = dict[str, dict[int, float]]
Config = dict[str, Any]
# What the fixtures of `conftest.py` are.
Told = Callable[[str], None]
Start = Callable[..., Trackers]
LogRun = Callable[[Trackers], None]
Require = Callable[..., None]
Readers = dict[str, Callable[[Path], tuple[Series, Config]]]
Holds = Callable[[str, Path], None]


def child_environment(**variables: str) -> dict[str, str]:
    return {**os.environ, **variables, "PYTHONPATH": str(Path(mltune_cli.__file__).parents[1])}


def test_packages_that_are_missing_are_named(tmp_path: Path) -> None:
    """Without site-packages nothing is installed; a folder that W&B left is no package."""
    (tmp_path / "wandb").mkdir()
    # The package itself lies among the others where it was installed from a wheel.
    package = Path(mltune_cli.__file__).parent
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / package.name).symlink_to(package)
    program = """
        import sys
        from mltune_cli.errors import RecipeValueError
        from mltune_cli.training.trackers import require_trackers
        for names in [["wandb"], ["tensorboard", "wandb", "mlflow", "trackio"]]:
            try:
                require_trackers(names)
            except RecipeValueError as error:
                print(error.message)
        require_trackers([])
    """
    finished = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "alone")},
        capture_output=True,
        text=True,
        check=True,
    )
    # Never by its bare name, under which an index may have something else.
    advice = "install mltune from where it came, with its extra trackers, or pip install"
    every_name = "tensorboard and wandb and mlflow and trackio"
    every_package = "tensorboard wandb mlflow-skinny trackio"
    assert finished.stdout.splitlines() == [
        f"log.trackers: wandb is not installed; {advice} wandb",
        f"log.trackers: {every_name} are not installed; {advice} {every_package}",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_stops_the_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    never_trouble: Told,
    run_config: Config,
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeValueError, match=rf"^log\.trackers: {name} is not installed") as seen:
        Trackers([name], tmp_path / "t", "run-001", run_config, never_trouble)
    assert seen.value.key == "log.trackers"
    assert not (tmp_path / "t").exists()


def test_installed_packages_are_accepted(require_installed: Require) -> None:
    require_installed(*NAMES)
    require_trackers(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_be_made_stops_the_start(
    tmp_path: Path, name: str, start: Start
) -> None:
    (tmp_path / name).write_text("a file")
    sentence = rf"^log\.trackers: {name} could not be started: .*File exists"
    with pytest.raises(RecipeValueError, match=sentence):
        start((name,), tmp_path)


def test_a_failed_start_ends_what_was_started(tmp_path: Path, start: Start) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(RecipeValueError, match="tensorboard could not be started"):
        start(("mlflow", "tensorboard"), tmp_path)
    import mlflow

    assert mlflow.active_run() is None
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_server_that_is_away_stops_the_start(tmp_path: Path, start: Start) -> None:
    os.environ |= {
        "MLFLOW_TRACKING_URI": f"http://somebody:{SECRET}@127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    with pytest.raises(RecipeValueError, match=r"mlflow could not be started: .*refused") as seen:
        start(("mlflow",), tmp_path)
    assert SECRET not in seen.value.message
    assert os.environ["MLFLOW_TRACKING_URI"].endswith("@127.0.0.1:9")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("first line\nsecond line", "first line"),
        ("", "OSError"),
        ("at https://me:hunter2@example.org/api", "at https://***@example.org/api"),
        (f"the key {SECRET} is refused", "the key *** is refused"),
    ],
)
def test_a_reason_is_one_line_without_secrets(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    reason: str,
    start: Start,
    require_installed: Require,
) -> None:
    require_installed("tensorboard")
    from accelerate import tracking

    def fail(self: Any) -> None:
        raise OSError(text)

    monkeypatch.setattr(tracking.TensorBoardTracker, "start", fail)
    os.environ["WANDB_API_KEY"] = SECRET
    with pytest.raises(RecipeValueError) as seen:
        start(("tensorboard",), tmp_path)
    assert seen.value.problem == f"tensorboard could not be started: {reason}"


def break_tracker(name: str, folder: Path) -> None:
    """Take its place away, or what writes for it."""
    if name == "wandb":
        # Its process holds its files open and would not notice.
        for child in psutil.Process().children():
            if "wandb-core" in child.name():
                child.kill()
                child.wait()
    else:
        shutil.rmtree(folder / name)
        (folder / name).write_text("a file")


# Two packages report from threads of theirs.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore:trackio :UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_is_dropped_and_the_other_goes_on(
    tmp_path: Path, name: str, start: Start, readers: Readers
) -> None:
    other = "mlflow" if name == "tensorboard" else "tensorboard"
    troubles: list[str] = []
    trackers = start((name, other), tmp_path, troubles.append)
    trackers.log({"loss": 1.0}, 1)
    break_tracker(name, tmp_path)
    step, deadline = 1, time.monotonic() + 20
    while not troubles and time.monotonic() < deadline:
        step += 1
        trackers.log({"loss": 1.0}, step)
        time.sleep(0.02)
    for later in range(step + 1, step + 4):
        trackers.log({"loss": 1.0}, later)
    trackers.finish()
    trackers.finish()
    (sentence,) = troubles
    assert sentence.startswith(f"log.trackers: {name} failed at step {step} and is told no more")
    assert "\n" not in sentence
    series, _ = readers[other](tmp_path / other)
    assert list(series["loss"]) == list(range(1, step + 4))


def test_a_failure_at_the_end_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: Start,
    log_run: LogRun,
    require_installed: Require,
    assert_holds_run: Holds,
) -> None:
    require_installed("tensorboard", "mlflow")
    from accelerate import tracking

    def fail(self: Any) -> None:
        raise OSError(28, "No space left on device")

    troubles: list[str] = []
    trackers = start(("tensorboard", "mlflow"), tmp_path, troubles.append)
    monkeypatch.setattr(tracking.TensorBoardTracker, "finish", fail)
    log_run(trackers)
    (sentence,) = troubles
    assert sentence.startswith("log.trackers: tensorboard failed while it was ended, and may lack")
    assert sentence.endswith(": [Errno 28] No space left on device")
    assert_holds_run("mlflow", tmp_path / "mlflow")


FULL_DISK = """
    import os, resource, sys, time, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    from mltune_cli.training.trackers import Trackers
    import torch
    folder, troubles = Path(sys.argv[1]), []
    names = ["tensorboard", "mlflow", "trackio"]
    trackers = Trackers(names, folder, "run-001", {"a": 1}, troubles.append)
    assert not torch.distributed.is_initialized()
    assert os.environ["WORLD_SIZE"] == "2"
    trackers.log({"loss": 1.0}, 1)
    # No file may grow beyond what TensorBoard's and MLflow's hold in a few steps.
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    for step in range(2, 150):
        trackers.log({"loss": 1.0, "learning_rate": 0.5}, step)
        time.sleep(0.01)
    trackers.finish()
    print(*sorted(troubles), sep="\\n")
"""


def test_a_full_disk_stops_no_training_and_a_launcher_is_not_joined(
    tmp_path: Path, require_installed: Require
) -> None:
    """The variables say that a second process exists; waiting for it would take for ever."""
    require_installed("tensorboard", "mlflow", "trackio")
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), tmp_path / "trackers"],
        env=child_environment(
            WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1"
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["mlflow", "tensorboard", "trackio"]
    assert all("the training goes on without it" in line for line in lines)


IN_A_GROUP = """
    import os, socket, sys, time, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    asked = []
    def look_up(host, *arguments, **options):
        asked.append(host)
        raise socket.gaierror(-2, "there is no network in this test")
    socket.getaddrinfo = look_up
    import torch
    import torch.distributed as dist
    from mltune_cli.training.determinism import settings, settle
    from mltune_cli.training.trackers import Trackers
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    settle(2)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank,
                            world_size=2)
    # The other process is inside a collective all the while, and takes part in nothing else.
    if rank == 0:
        def state():
            return (settings(), dist.get_world_size(), dist.get_rank(), dist.get_backend(),
                    os.sched_getaffinity(0), torch.get_num_interop_threads(),
                    {n: v for n, v in os.environ.items() if "RANK" in n or "SIZE" in n})
        before, group = state(), dist.group.WORLD
        trackers = Trackers(sys.argv[3:], folder / "trackers", "run-001", {"a": 1}, sys.exit)
        for step in (1, 2, 3):
            trackers.log({"loss": 1.0 / step}, step)
        assert state() == before
        trackers.finish()
        assert state() == before
        assert dist.group.WORLD is group
        time.sleep(0.5)  # for those who would ask from a thread of theirs
        assert asked == []
    total = torch.ones(3) * (rank + 1)
    dist.all_reduce(total)
    assert total.tolist() == [3.0, 3.0, 3.0]
    dist.destroy_process_group()
"""


def test_in_a_group_one_process_is_busy_and_nobody_outside_is_asked(
    tmp_path: Path, require_installed: Require, readers: Readers
) -> None:
    """Neither for telemetry nor for the user's name, even with tokens and remotes at hand."""
    require_installed(*NAMES)
    for name in ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS"):
        # MLflow's telemetry rests where it believes itself under test.
        os.environ.pop(name, None)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(IN_A_GROUP), str(rank), tmp_path, *NAMES],
            env=child_environment(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                ACCELERATE_CPU_AFFINITY="1", ACCELERATE_USE_CPU="1", HF_TOKEN="hf_" + SECRET,
                TRACKIO_SPACE_ID="somebody/dashboard", TRACKIO_BUCKET_ID="somebody/bucket",
                TRACKIO_SERVER_URL="http://example.org", TRACKIO_WEBHOOK_URL="http://example.org",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    for name in NAMES:
        series, _ = readers[name](tmp_path / "trackers" / name)
        assert list(series["loss"]) == [1, 2, 3]
