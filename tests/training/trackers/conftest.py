"""Trackers of a process without settings of the user's, and readers of what they wrote."""

import importlib.util
import json
import os
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.training.trackers import Trackers

CONFIG = {
    "train.learning_rate": 1e-4,
    "train.max_steps": 3,
    "data.packing": True,
    "model.name_or_path": "tiny",
    "adapter.targets": "q_proj, v_proj",
}
LOSSES = {1: 3.0, 2: 2.5, 3: 2.25}

Series = dict[str, dict[int, float]]


@pytest.fixture(autouse=True)
def _clean_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Start without settings or logins of the user's, and leave nothing to the next test."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_", "NETRC", "HF_TOKEN")):
            del os.environ[name]
    home = tmp_path / "home"
    home.mkdir()
    os.environ["HOME"] = str(home)
    # Trackio keeps the folder that it was first imported with, which a worker does once.
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        del sys.modules[name]
    os.environ.clear()
    os.environ.update(before)


def require_installed(*names: str) -> None:
    """Skip where the optional extra is left out; importing a package here would settle it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: it comes with mltune's extra trackers")


def never_trouble(sentence: str) -> None:
    raise AssertionError(sentence)


def start(
    names: tuple[str, ...], folder: Path, on_trouble: Callable[[str], None] = never_trouble
) -> Trackers:
    require_installed(*names)
    return Trackers(names, folder, "run-001", CONFIG, on_trouble)


def log_run(trackers: Trackers) -> None:
    """Log as the loop does: each step, and a held-out loss after the last."""
    for step, loss in LOSSES.items():
        trackers.log({"loss": loss, "learning_rate": 1e-4 / step}, step)
    trackers.log({"validation_loss": 2.125}, 3)
    trackers.finish()


EXPECTED: Series = {
    "loss": LOSSES,
    "learning_rate": {step: 1e-4 / step for step in LOSSES},
    "validation_loss": {3: 2.125},
}


def read_tensorboard(folder: Path) -> tuple[Series, dict[str, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(folder)).Reload()
    series = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    # The hyperparameters are written as a run of their own, in a folder below.
    (below,) = {path.parent for path in folder.glob("*/events.out.tfevents.*")}
    content = EventAccumulator(str(below)).Reload().PluginTagToContent("hparams")
    start_info = metadata.parse_session_start_info_plugin_data(
        content[metadata.SESSION_START_INFO_TAG]
    )
    config = {
        key: getattr(value, value.WhichOneof("kind")) for key, value in start_info.hparams.items()
    }
    return series, config


def read_mlflow(folder: Path) -> tuple[Series, dict[str, Any]]:
    from mlflow import MlflowClient

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # asked of every reader as well
    client = MlflowClient(tracking_uri=folder.as_uri())
    experiment = client.get_experiment_by_name("mltune")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run-001"
    assert run.info.status == "FINISHED"
    series = {
        name: {
            metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)
        }
        for name in run.data.metrics
    }
    return series, dict(run.data.params)


def wandb_records(path: Path) -> Iterator[Any]:
    """Parse a .wandb file: a header of seven bytes, then a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, pending = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if kind == 0:
            break
        pending += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(pending)
            pending = b""


def read_wandb(folder: Path) -> tuple[Series, dict[str, Any]]:
    (path,) = folder.glob("offline-run-*/run-*.wandb")
    series: Series = {}
    config = {}
    for record in wandb_records(path):
        if record.HasField("run"):
            assert (record.run.project, record.run.display_name) == ("mltune", "run-001")
        for update in record.config.update:
            config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        items = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for key, value in items.items():
            if not key.startswith("_"):
                series.setdefault(key, {})[record.history.step.num or items["_step"]] = value
    return series, config


def read_trackio(folder: Path) -> tuple[Series, dict[str, Any]]:
    connection = sqlite3.connect(folder / "mltune.db")
    try:
        series: Series = {}
        rows = connection.execute("select run_name, step, metrics from metrics order by id")
        for run_name, step, metrics in rows:
            assert run_name == "run-001"
            for key, value in json.loads(metrics).items():
                series.setdefault(key, {})[step] = value
        ((config,),) = connection.execute("select config from configs")
    finally:
        connection.close()
    return series, {k: v for k, v in json.loads(config).items() if not k.startswith("_")}


READERS: dict[str, Callable[[Path], tuple[Series, dict[str, Any]]]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
}


def assert_holds_run(name: str, folder: Path) -> None:
    series, config = READERS[name](folder)
    assert series.keys() == EXPECTED.keys()
    for key, values in EXPECTED.items():
        # TensorBoard keeps 32 bits of each.
        assert series[key] == pytest.approx(values, rel=1e-6)
    assert config.keys() >= CONFIG.keys()
    assert float(config["train.learning_rate"]) == CONFIG["train.learning_rate"]
    # TensorBoard's way into torch takes True for a number.
    assert str(config["data.packing"]) == ("1.0" if name == "tensorboard" else "True")
    assert config["adapter.targets"] == "q_proj, v_proj"


@pytest.fixture(name="require_installed")
def _require_installed() -> Callable[..., None]:
    """Skip where a package is left out: `require_installed("wandb")`."""
    return require_installed


@pytest.fixture(name="never_trouble")
def _never_trouble() -> Callable[[str], None]:
    """Whom nothing may be told: `never_trouble(sentence)` fails."""
    return never_trouble


@pytest.fixture(name="start")
def _start() -> Callable[..., Trackers]:
    """Start trackers: `start(names, folder, on_trouble)`; skips where one is not installed."""
    return start


@pytest.fixture(name="log_run")
def _log_run() -> Callable[[Trackers], None]:
    """Log three steps and end: `log_run(trackers)`."""
    return log_run


@pytest.fixture(name="assert_holds_run")
def _assert_holds_run() -> Callable[[str, Path], None]:
    """Require that a tracker's folder holds what `log_run` logs."""
    return assert_holds_run


@pytest.fixture(name="readers")
def _readers() -> dict[str, Callable[[Path], tuple[Series, dict[str, Any]]]]:
    """Return each tracker's reader: of a folder, the series and the config."""
    return READERS


@pytest.fixture(name="run_config")
def _run_config() -> dict[str, Any]:
    """Return what `start` says of the run."""
    return dict(CONFIG)
