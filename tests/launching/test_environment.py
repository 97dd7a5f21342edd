"""The worker's environment: what is set, what is taken away, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mltune_cli.launching.devices import side_by_side_slots, visible_gpus
from mltune_cli.launching.environment import worker_environment
from mltune_cli.recipe.schema import Recipe

LOCAL = {"model.name_or_path": "mltune/tiny", "data.train": "mltune/repro_dataset/train.jsonl"}


def recipe(**values: object) -> Recipe:
    return Recipe().with_values(LOCAL | {key.replace("__", "."): v for key, v in values.items()})


def test_the_whole_environment_of_a_local_run() -> None:
    """Everything that decides bits is set before Python runs; the user's own settings stay."""
    inherited = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "LD_PRELOAD": "libjemalloc.so",
        "CUDA_VISIBLE_DEVICES": "1",
        "PYTHONHASHSEED": "random",
        "OMP_NUM_THREADS": "64",
        "MKL_NUM_THREADS": "64",
        "CUBLAS_WORKSPACE_CONFIG": ":16:8",
        "TOKENIZERS_PARALLELISM": "true",
        "HF_TOKEN": "secret",
        "ATEN_CPU_CAPABILITY": "default",
        "CUBLASLT_WORKSPACE_SIZE": "1",
        "DNNL_MAX_CPU_ISA": "SSE41",
        "GOMP_CPU_AFFINITY": "0",
        "KMP_AFFINITY": "compact",
        "MKL_CBWR": "COMPATIBLE",
        "MKL_DYNAMIC": "TRUE",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "NVIDIA_TF32_OVERRIDE": "1",
        "OMP_DYNAMIC": "TRUE",
        "OMP_SCHEDULE": "dynamic",
        "OMP_THREAD_LIMIT": "1",
        "PYTORCH_TUNABLEOP_ENABLED": "1",
        "TORCH_BLAS_PREFER_CUBLASLT": "1",
        "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
        "TORCHINDUCTOR_CACHE_DIR": "/cache",
        "TORCHINDUCTOR_MAX_AUTOTUNE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "TRITON_KERNEL_OVERRIDE": "1",
        "TRITON_LIBCUDA_PATH": "/driver",
    }
    before = dict(inherited)
    assert worker_environment(recipe(reproducibility__threads=3), inherited) == {
        "PATH": "/bin",
        "HOME": "/home/me",
        "LD_PRELOAD": "libjemalloc.so",
        "CUDA_VISIBLE_DEVICES": "1",
        "HF_TOKEN": "secret",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TORCHINDUCTOR_CACHE_DIR": "/cache",
        "TORCHINDUCTOR_DETERMINISTIC": "1",
        "TORCH_COMPILE_CACHE_KEY_TAG": "mltune-4-512-auto-alone",
        "TRITON_LIBCUDA_PATH": "/driver",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    assert inherited == before


def test_the_libraries_talk_as_much_as_their_user_asks() -> None:
    inherited = {"TRANSFORMERS_VERBOSITY": "info"}
    assert worker_environment(recipe(), inherited)["TRANSFORMERS_VERBOSITY"] == "info"


@pytest.mark.parametrize("key", ["model__name_or_path", "data__train", "data__validation"])
def test_the_hub_is_reached_only_by_a_recipe_that_names_it(key: str, tmp_path: Path) -> None:
    """Offline unless a name is neither bundled nor here; then the user's own setting holds."""
    here = recipe(**{key: str(tmp_path)})
    assert worker_environment(here, {})["HF_HUB_OFFLINE"] == "1"
    assert worker_environment(here, {"HF_HUB_OFFLINE": "0"})["HF_HUB_OFFLINE"] == "1"
    away = recipe(**{key: "org/name"})
    assert "HF_HUB_OFFLINE" not in worker_environment(away, {})
    assert worker_environment(away, {"HF_HUB_OFFLINE": "1"})["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in worker_environment(recipe(**{key: "x" * 5000}), {})


@pytest.mark.parametrize(
    ("variable", "gpus"), [("", []), ("-1", []), ("0", ["0"]), ("2, 3", ["2", "3"])]
)
def test_gpus_are_those_that_the_user_lets_be_seen(
    monkeypatch: pytest.MonkeyPatch, variable: str, gpus: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == gpus


def test_without_a_driver_there_are_no_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    broken.chmod(0o755)
    assert visible_gpus() == []


def test_runs_go_side_by_side_where_each_has_a_device_or_cores_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert side_by_side_slots(recipe(model__device="cuda"), 1) == [
        {"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "5"},
    ]  # fmt: skip
    assert side_by_side_slots(recipe(model__device="cuda"), 2) == [{"CUDA_VISIBLE_DEVICES": "4,5"}]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert len(side_by_side_slots(recipe(model__device="cpu"), 1)) == 8
    assert len(side_by_side_slots(recipe(model__device="cpu"), 3)) == 2
    assert len(side_by_side_slots(recipe(model__device="cpu", reproducibility__threads=3), 1)) == 2
    assert side_by_side_slots(recipe(model__device="cpu", reproducibility__threads=99), 1) == [{}]


def test_code_is_compiled_for_rows_of_one_size_alone() -> None:
    """Another training's code would be taken from torch's caches where only sizes differ."""
    name = "TORCH_COMPILE_CACHE_KEY_TAG"

    def tag(**values: object) -> str:
        return worker_environment(recipe(**values), {name: "mine"})[name]

    same = [tag(), tag(train__learning_rate=1e-5), tag(reproducibility__seed=7)]
    assert len(set(same)) == 1
    other = [
        tag(train__micro_batch_size=8), tag(data__max_length=64), tag(data__packing=True),
        tag(evaluate__every_steps=5, data__validation="mltune/repro_dataset/validation.jsonl"),
    ]  # fmt: skip
    assert len({*same, *other}) == 5
