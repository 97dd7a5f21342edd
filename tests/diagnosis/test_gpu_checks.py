"""The driver, the GPUs and their memory: false drivers, false GPUs, and the machine as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.diagnosis.checks.driver import cuda_problem
from mltune_cli.diagnosis.checks.gpu import has_kernels

H100 = {"name": "NVIDIA H100", "capability": [9, 0]}
T4 = {"name": "Tesla T4", "capability": [7, 5], "total": 15 << 30}


def fault(told: Any, severity: str) -> dict[str, Any]:
    """The only finding of that severity, with its reason and its remedy."""
    (finding,) = [one for one in told.findings() if one["severity"] == severity]
    assert finding["why"]
    assert finding["remedy"]
    return finding


# The driver ---------------------------------------------------------------------------------------


def test_no_driver_is_no_fault_on_a_cpu(clinic: Any) -> None:
    told = clinic.look("driver")
    assert (told.code, told.severity) == (0, "ok")


def test_no_driver_for_a_recipe_on_cuda(clinic: Any) -> None:
    recipe = clinic.recipe(device="cuda")
    told = clinic.look("driver", "--config", recipe)
    assert told.code == 1
    finding = fault(told, "error")
    assert "no NVIDIA driver, and model.device is cuda" in finding["seen"]
    value = finding["command"].rpartition("--set ")[2]
    assert clinic.look("driver", "--config", recipe, "--set", value).severity == "ok"


@pytest.mark.parametrize(
    ("cuda", "runs", "driver", "is_good"),
    [
        ("13.0", 13000, "580.65.06", True),
        ("13.0", 12080, "570.10", False),
        ("12.8", 12040, "550.54", True),  # minor versions are compatible
        ("12.8", 12040, "525.60", True),
        ("12.8", 11080, "520.61", False),
        ("11.8", 11020, "460.91", True),
        ("13.1", 13000, "580.65.06", True),
        ("12.6", 13000, "580.65.06", True),  # older libraries run on newer drivers
    ],
)
def test_the_driver_against_the_build(
    clinic: Any,
    libcuda: Any,
    torch_package: Any,
    nvidia_smi: Any,
    cuda: str,
    runs: int,
    driver: str,
    is_good: bool,
) -> None:
    """A compiled driver library, asked as torch would ask it."""
    nvidia_smi("False GPU", driver=driver)
    env = torch_package(cuda=cuda) | libcuda(version=runs)
    recipe = clinic.recipe(device="auto")
    told = clinic.look("driver", "--config", recipe, env=env)
    assert (told.severity, told.code) == (("ok", 0) if is_good else ("error", 1))
    if not is_good:
        finding = fault(told, "error")
        assert f"built for CUDA {cuda}" in finding["seen"]
        assert (
            f"driver {driver} runs CUDA up to {runs // 1000}.{runs % 1000 // 10}" in finding["seen"]
        )
        assert "update the driver" in finding["remedy"]
        value = finding["command"].rpartition("--set ")[2]
        told = clinic.look("driver", "--config", recipe, "--set", value, env=env)
        assert told.code == 0, "on the CPU it is a warning"


@given(st.integers(11, 13), st.integers(0, 9), st.integers(11, 13), st.integers(0, 9))
def test_a_driver_never_loses_by_being_newer(a: int, b: int, c: int, d: int) -> None:
    needed, runs = (a, b), (c, d)
    if cuda_problem(needed, runs, None) is None:
        assert cuda_problem(needed, (c, d + 1), None) is None
        assert cuda_problem(needed, (c + 1, 0), None) is None
    if runs >= needed:
        assert cuda_problem(needed, runs, "400.1") is None


@pytest.mark.parametrize(
    ("status", "seen", "remedy"),
    [
        (34, "the stub that programs are linked with", "LD_LIBRARY_PATH"),
        (46, "busy or unavailable", "compute mode"),
        (101, "names a device that is not there", "nvidia-smi -L"),
        (802, "fabric manager does not run", "start the fabric manager"),
        (803, "of two versions", "restart the machine"),
        (804, "compatibility libraries", "compat"),
        (999, "kernel module is in a bad state", "nvidia_uvm"),
        (717, "cuInit returned 717", "restart the machine"),
    ],
)
def test_a_driver_that_does_not_start(
    clinic: Any, libcuda: Any, status: int, seen: str, remedy: str
) -> None:
    told = clinic.look(
        "driver", "--config", clinic.recipe(device="auto"), env=libcuda(status=status)
    )
    assert told.code == 1
    finding = fault(told, "error")
    assert seen in finding["seen"]
    assert remedy in finding["remedy"]
    told = clinic.look("driver", "--config", clinic.recipe(device="auto"), env=libcuda(status=0))
    assert told.severity == "ok"


def test_a_stub_on_the_library_path_is_taken_off_it(clinic: Any, libcuda: Any) -> None:
    recipe = clinic.recipe(device="auto")
    env = libcuda(status=34)
    finding = fault(clinic.look("driver", "--config", recipe, env=env), "error")
    told = clinic.look("driver", "--config", recipe, env=env, before=finding["command"])
    assert told.severity == "ok"


def test_every_gpu_is_hidden(clinic: Any, libcuda: Any) -> None:
    """The same library answers by what the variable says, as the real one does."""
    on_init = 'char *v = getenv("CUDA_VISIBLE_DEVICES"); if (v && !*v) return 100;'
    env = libcuda(on_init=on_init) | {"CUDA_VISIBLE_DEVICES": ""}
    recipe = clinic.recipe(device="auto")
    finding = fault(clinic.look("driver", "--config", recipe, env=env), "error")
    assert "CUDA_VISIBLE_DEVICES= hides every GPU" in finding["seen"]
    told = clinic.look("driver", "--config", recipe, env=env, before=finding["command"])
    assert told.severity == "ok"


def test_a_driver_without_a_gpu(clinic: Any, libcuda: Any) -> None:
    told = clinic.look("driver", "--config", clinic.recipe(device="auto"), env=libcuda(status=100))
    assert "finds no GPU" in fault(told, "error")["seen"]


@pytest.mark.parametrize(
    ("on_init", "seen"),
    [
        ("abort();", "with signal 6"),
        ("*(volatile int *)0 = 1;", "with signal 11"),
        ("_exit(7);", "with status 7"),
        ("for (;;) pause();", "did not answer within 4 seconds"),
    ],
)
def test_a_driver_that_takes_its_process_down(
    clinic: Any, libcuda: Any, on_init: str, seen: str
) -> None:
    told = clinic.look(
        "driver", "--config", clinic.recipe(device="auto"), env=libcuda(on_init=on_init)
    )
    assert told.code == 1
    finding = fault(told, "error")
    assert seen in finding["seen"]
    assert "dmesg" in finding["command"]


def test_a_driver_whose_library_is_not_in_the_container(clinic: Any, nvidia_smi: Any) -> None:
    nvidia_smi("NVIDIA H100", driver="580.65.06")
    told = clinic.look("driver", "--config", clinic.recipe(device="auto"))
    finding = fault(told, "error")
    assert "driver 580.65.06 is there, and libcuda.so.1 cannot be loaded" in finding["seen"]
    assert "NVIDIA_DRIVER_CAPABILITIES" in finding["remedy"]


# The GPUs -----------------------------------------------------------------------------------------


def test_no_gpu_is_no_fault_on_a_cpu(clinic: Any) -> None:
    assert clinic.look("gpu").severity == "ok"


def test_no_gpu_for_a_recipe_on_cuda(clinic: Any, torch_package: Any) -> None:
    recipe = clinic.recipe(device="cuda")
    told = clinic.look("gpu", "--config", recipe, env=torch_package())
    assert told.code == 1
    finding = fault(told, "error")
    assert "torch sees no GPU, and model.device is cuda" in finding["seen"]
    value = finding["command"].rpartition("--set ")[2]
    told = clinic.look("gpu", "--config", recipe, "--set", value)
    assert told.severity == "ok"


def test_a_gpu_that_torch_does_not_see(clinic: Any, torch_package: Any, nvidia_smi: Any) -> None:
    nvidia_smi("NVIDIA H100")
    env = torch_package(warning="The NVIDIA driver on your system is too old")
    told = clinic.look("gpu", "--config", clinic.recipe(device="auto"), env=env)
    assert told.code == 1
    finding = fault(told, "error")
    assert (
        "this machine has NVIDIA H100, and torch sees no GPU: The NVIDIA driver" in finding["seen"]
    )
    env["FALSE_TORCH"] = json.dumps({"gpus": [H100]})
    told = clinic.look("gpu", "--config", clinic.recipe(device="auto"), env=env)
    assert told.severity == "ok"
    assert "1 GPU: NVIDIA H100 (compute 9.0)" in told.finding["seen"]


def test_an_nvidia_smi_that_fails(clinic: Any, torch_package: Any) -> None:
    clinic.program("nvidia-smi", "echo 'Driver/library version mismatch'; exit 18")
    told = clinic.look("gpu", "--config", clinic.recipe(device="auto"), env=torch_package())
    assert "Driver/library version mismatch" in fault(told, "error")["seen"]


def test_a_gpu_without_kernels_in_the_build(clinic: Any, torch_package: Any) -> None:
    env = torch_package(gpus=[T4], architectures=["sm_80", "sm_90", "compute_90"])
    told = clinic.look(
        "gpu", "--config", clinic.recipe("model: {dtype: float32}", device="auto"), env=env
    )
    assert told.code == 1
    finding = fault(told, "error")
    assert "no kernels for Tesla T4 (compute 7.5); it has sm_80 sm_90" in finding["seen"]
    assert "no kernel image" in finding["why"]
    env["FALSE_TORCH"] = json.dumps({"gpus": [T4], "architectures": ["sm_75", "sm_80"]})
    told = clinic.look(
        "gpu", "--config", clinic.recipe("model: {dtype: float32}", device="auto"), env=env
    )
    assert told.severity == "ok"


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80"], True),  # machine code runs on later minor versions
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["compute_80"], True),  # intermediate code runs on all later ones
        ((7, 5), ["compute_80"], False),
        ((12, 0), ["sm_90", "sm_120"], True),
        ((12, 1), ["sm_120"], True),
        ((10, 0), ["sm_90a"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["sm_100f", "sm_100"], False),
        ((9, 0), [], True),
    ],
)
def test_which_gpus_a_build_runs_on(
    capability: tuple[int, int], architectures: list[str], runs: bool
) -> None:
    assert has_kernels(capability, architectures) is runs


def test_gpus_of_two_kinds(clinic: Any, torch_package: Any) -> None:
    env = torch_package(gpus=[H100, {"name": "NVIDIA A100", "capability": [8, 0]}])
    told = clinic.look("gpu", "--config", clinic.recipe(device="auto"), env=env)
    finding = fault(told, "warning")
    assert "NVIDIA A100 80 GiB, NVIDIA H100 80 GiB" in finding["seen"]
    assert finding["command"].startswith("export CUDA_DEVICE_ORDER=PCI_BUS_ID")


def test_a_gpu_without_bfloat16(clinic: Any, torch_package: Any) -> None:
    env = torch_package(gpus=[T4], architectures=["sm_75"])
    recipe = clinic.recipe(device="auto")
    finding = fault(clinic.look("gpu", "--config", recipe, env=env), "warning")
    assert "Tesla T4 (compute 7.5) has no bfloat16" in finding["seen"]
    value = finding["command"].rpartition("--set ")[2]
    assert clinic.look("gpu", "--config", recipe, "--set", value, env=env).severity == "ok"


def test_a_gpu_that_does_not_multiply_in_eight_bits(clinic: Any, torch_package: Any) -> None:
    a100 = {"name": "NVIDIA A100", "capability": [8, 0]}
    recipe = clinic.recipe("model: {base_precision: fp8}", device="auto")
    old = torch_package(gpus=[a100], architectures=["sm_80", "sm_90"])
    finding = fault(clinic.look("gpu", "--config", recipe, env=old), "error")
    assert "NVIDIA A100 (compute 8.0) does not multiply in 8 bits" in finding["seen"]
    value = finding["command"].rpartition("--set ")[2]
    assert clinic.look("gpu", "--config", recipe, "--set", value, env=old).severity == "ok"


def test_a_gpu_that_multiplies_in_eight_bits(clinic: Any, torch_package: Any) -> None:
    recipe = clinic.recipe("model: {base_precision: fp8}", device="auto")
    env = torch_package(gpus=[H100], architectures=["sm_80", "sm_90"])
    assert clinic.look("gpu", "--config", recipe, env=env).severity == "ok"


# Memory -------------------------------------------------------------------------------------------

SHAPE_1B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16,
    "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8,
    "tie_word_embeddings": True, "max_position_embeddings": 131072,
}  # fmt: skip


def memory_recipe(clinic: Any, more: str = "", **shape: Any) -> Any:
    clinic.write("model/config.json", json.dumps(SHAPE_1B | shape))
    # The older kernels, whose figures these are.
    text = (
        "model: {dtype: bfloat16, attention: sdpa}\ndata: {max_length: 2048, packing: true}\n"
        + more
    )
    return clinic.recipe(text, model=str(clinic.folder / "model"), device="auto")


def gpu_with(free_gib: float) -> str:
    return json.dumps({"gpus": [H100 | {"free": int(free_gib * 2**30)}]})


@pytest.mark.parametrize(
    ("free_gib", "severity"), [(80, "ok"), (12.6, "ok"), (11.8, "warning"), (9, "error")]
)
def test_the_estimate_against_free_memory(
    clinic: Any, torch_package: Any, free_gib: float, severity: str
) -> None:
    """The 1B shape needs 10.7 GiB without dropout: see tests/test_memory_estimate.py."""
    env = torch_package() | {"FALSE_TORCH": gpu_with(free_gib)}
    more = "train: {micro_batch_size: 1, micro_batches_per_step: 2}"
    recipe = memory_recipe(clinic, more)
    told = clinic.look("memory", "--config", recipe, env=env)
    assert (told.severity, told.code) == (severity, 1 if severity == "error" else 0), told.stdout
    assert "about 10.7 GiB at its peak (activations" in told.finding["seen"]
    assert f"the GPU has {free_gib:.1f} GiB free" in told.finding["seen"]
    if severity != "ok":
        finding = fault(told, severity)
        assert "train.activation_checkpointing=true it is 5.7 GiB" in finding["remedy"]
        value = finding["command"].rpartition("--set ")[2]
        mended = clinic.look("memory", "--config", recipe, "--set", value, env=env)
        assert mended.severity == "ok"


def test_what_training_will_recompute_by_itself_is_counted_so(
    clinic: Any, torch_package: Any
) -> None:
    """What a GPU has decides, not what is free: the recipe must come to the same every time."""
    more = "train: {micro_batch_size: 1, micro_batches_per_step: 2}"
    recipe = memory_recipe(clinic, more)
    small = json.dumps({"gpus": [H100 | {"total": 8 << 30, "free": 8 << 30}]})
    env = torch_package() | {"FALSE_TORCH": small}
    told = clinic.look("memory", "--config", recipe, env=env)
    assert told.severity == "ok"
    assert "about 5.7 GiB at its peak" in told.finding["seen"]
    setting = ("--set", "train.activation_checkpointing=false")
    assert clinic.look("memory", "--config", recipe, *setting, env=env).severity == "error"


def test_the_remedies_that_are_left(clinic: Any, torch_package: Any) -> None:
    """Where activations are recomputed already: fewer rows at a time, then shorter ones."""
    env = torch_package() | {"FALSE_TORCH": gpu_with(7)}
    more = "train: {micro_batch_size: 4, micro_batches_per_step: 2, activation_checkpointing: true}"
    recipe = memory_recipe(clinic, more)
    finding = fault(clinic.look("memory", "--config", recipe, env=env), "error")
    assert "lower train.micro_batch_size" in finding["remedy"]
    sets = finding["command"].split(" --set ")[1:]
    assert sets == ["train.micro_batch_size=1", "train.micro_batches_per_step=8"]
    arguments = [word for value in sets for word in ("--set", value)]
    assert clinic.look("memory", "--config", recipe, *arguments, env=env).severity == "ok"
    env["FALSE_TORCH"] = gpu_with(4.5)
    told = clinic.look("memory", "--config", recipe, *arguments, env=env)
    finding = fault(told, "error")
    assert "lower data.max_length" in finding["remedy"]
    value = finding["command"].rpartition("--set ")[2]
    assert value == "data.max_length=1024"
    mended = clinic.look("memory", "--config", recipe, *arguments, "--set", value, env=env)
    assert mended.severity in ("ok", "warning")


def test_a_sharded_base_is_divided_over_the_gpus(clinic: Any, torch_package: Any) -> None:
    env = torch_package() | {"FALSE_TORCH": json.dumps({"gpus": [H100 | {"free": 10 << 30}] * 4})}
    more = "train: {micro_batch_size: 1, micro_batches_per_step: 8}"
    recipe = memory_recipe(clinic, more)
    fault(clinic.look("memory", "--config", recipe, env=env), "error")
    told = clinic.look("memory", "--config", recipe, "--set", "model.sharding=fsdp", env=env)
    assert "one process of 4 needs about 9." in told.stdout
    assert told.code == 0


def test_memory_of_this_machine(clinic: Any) -> None:
    """Without a GPU the machine's own memory counts: no machine has room for this model."""
    assert clinic.look("memory").severity == "ok"
    recipe = memory_recipe(clinic, num_hidden_layers=16000)
    told = clinic.look("memory", "--config", recipe)
    assert told.code == 1
    assert "and this machine has" in fault(told, "error")["seen"]


def test_what_cannot_be_estimated_is_said(clinic: Any) -> None:
    recipe = memory_recipe(clinic, num_local_experts=8)
    told = clinic.look("memory", "--config", recipe)
    assert (told.code, told.severity) == (0, "info")
    assert "mixture of experts" in told.finding["seen"]
    (clinic.folder / "model" / "config.json").write_text("[1]")
    assert "not estimated" in clinic.look("memory", "--config", recipe).finding["seen"]
    recipe = clinic.recipe(model="somebody/model")
    told = clinic.look("memory", "--config", recipe)
    assert "not on this machine yet" in told.finding["seen"]
