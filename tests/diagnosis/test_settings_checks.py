"""The checks of settings that decide bits: each with its fault, and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

# Check, variables with the fault, severity, part of what is seen.
VARIABLES = [
    ("hash-seed", {}, "info", "PYTHONHASHSEED is not set"),
    ("hash-seed", {"PYTHONHASHSEED": "random"}, "info", "PYTHONHASHSEED is random"),
    ("threads", {}, "info", "OMP_NUM_THREADS is not set"),
    ("threads", {"OMP_NUM_THREADS": "many"}, "warning", "OMP_NUM_THREADS=many is no number"),
    ("cublas-workspace", {"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, "warning", "CONFIG=:0:0"),
    ("tf32", {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}, "warning", "TF32_CUBLAS_OVERRIDE=1"),
    ("cpu-kernels", {"ATEN_CPU_CAPABILITY": "avx2"}, "warning", "ATEN_CPU_CAPABILITY=avx2"),
    ("cpu-kernels", {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, "warning", "MKL_ENABLE_INSTRUCTIONS"),
    (
        "cpu-kernels",
        {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
        "warning",
        "takes them out",
    ),
    ("cpu-kernels", {"DNNL_DEFAULT_FPMATH_MODE": "BF16"}, "warning", "FPMATH_MODE=BF16"),
    ("autotune-caches", {"TORCHINDUCTOR_MAX_AUTOTUNE": "1"}, "warning", "MAX_AUTOTUNE=1"),
    ("autotune-caches", {"PYTORCH_TUNABLEOP_ENABLED": "1"}, "warning", "TUNABLEOP_ENABLED=1"),
    ("nccl", {"CUDA_VISIBLE_DEVICES": "0,1"}, "info", "2 GPUs, and NCCL_ALGO and NCCL_PROTO"),
]


def faulty(name: str, told: Any, severity: str) -> dict[str, Any]:
    """The finding of that severity; it says what, why and how to mend it."""
    (finding,) = [f for f in told.findings(name) if f["severity"] == severity]
    assert finding["seen"]
    assert finding["why"]
    assert finding["remedy"]
    return finding


@pytest.mark.parametrize(("check", "env", "severity", "seen"), VARIABLES)
def test_a_variable_is_found_and_its_remedy_mends_it(
    clinic: Any, check: str, env: dict[str, str], severity: str, seen: str
) -> None:
    """The remedy is run in the shell that has the fault, and the doctor again in the same one."""
    told = clinic.look(check, env=env)
    assert told.code == 0
    finding = faulty(check, told, severity)
    assert seen in finding["seen"]
    assert finding["scope"] == "scripts"  # mltune's own training settles each of these itself
    mended = clinic.look(check, env=env, before=finding["command"])
    assert mended.severity == "ok", mended.stdout
    assert finding["seen"] not in mended.stdout


@pytest.mark.parametrize(
    ("check", "env"),
    [
        ("hash-seed", {"PYTHONHASHSEED": "0"}),
        ("threads", {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "2"}),
        ("cublas-workspace", {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}),
        ("cublas-workspace", {}),  # torch is a CPU build here
        ("tf32", {"NVIDIA_TF32_OVERRIDE": "0", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0"}),
        ("cpu-kernels", {"MKL_NUM_THREADS": "1", "ONEDNN_VERBOSE": "0", "OMP_NUM_THREADS": "2"}),
        ("autotune-caches", {"TORCHINDUCTOR_MAX_AUTOTUNE": "0"}),
        ("nccl", {"CUDA_VISIBLE_DEVICES": "0,1", "NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple"}),
        ("nccl", {"CUDA_VISIBLE_DEVICES": "0"}),
        ("nccl", {"CUDA_VISIBLE_DEVICES": ""}),
    ],
)
def test_without_the_fault_all_is_well(clinic: Any, check: str, env: dict[str, str]) -> None:
    told = clinic.look(check, env=env)
    assert (told.code, told.severity) == (0, "ok"), told.stdout


def test_strict_makes_a_warning_an_error(clinic: Any) -> None:
    fault = {"ATEN_CPU_CAPABILITY": "avx2"}
    assert clinic.look("cpu-kernels", "--strict", env=fault).code == 1
    assert clinic.look("cpu-kernels", "--strict").code == 0
    assert clinic.look("hash-seed", "--strict").code == 0, "a note is no warning"


def test_a_preloaded_library_is_named(clinic: Any) -> None:
    library = next(Path("/lib").rglob("libm.so.6"), None) or next(
        Path("/usr/lib").rglob("libm.so.6")
    )
    told = clinic.look("cpu-kernels", env={"LD_PRELOAD": str(library)})
    finding = faulty("cpu-kernels", told, "info")
    assert str(library) in finding["seen"]
    assert finding["scope"] == "everything"
    assert clinic.look("cpu-kernels", before=finding["command"]).severity == "ok"


def test_more_threads_than_cores(clinic: Any) -> None:
    recipe = clinic.recipe("reproducibility: {threads: 4000}")
    told = clinic.look("threads", "--config", recipe, env={"OMP_NUM_THREADS": "1"})
    finding = faulty("threads", told, "warning")
    assert "reproducibility.threads is 4000" in finding["seen"]
    value = finding["command"].rpartition("--set ")[2]
    mended = clinic.look(
        "threads", "--config", recipe, "--set", value, env={"OMP_NUM_THREADS": "1"}
    )
    assert mended.severity == "ok"


def test_several_gpus_seen_by_nvidia_smi(clinic: Any, nvidia_smi: Any) -> None:
    nvidia_smi("NVIDIA H100", "NVIDIA H100")
    assert "2 GPUs" in faulty("nccl", clinic.look("nccl"), "info")["seen"]
    nvidia_smi("NVIDIA H100")
    assert clinic.look("nccl").severity == "ok"


def test_a_sharded_full_recipe_lets_nccl_sum(clinic: Any, nvidia_smi: Any) -> None:
    nvidia_smi("NVIDIA H100", "NVIDIA H100")
    recipe = clinic.recipe("adapter: {method: full}\nmodel: {sharding: fsdp}")
    finding = faulty("nccl", clinic.look("nccl", "--config", recipe), "warning")
    assert "the recipe lets NCCL sum gradients" in finding["seen"]
    assert finding["scope"] == "everything"
    mended = clinic.look("nccl", "--config", recipe, before=finding["command"])
    assert mended.severity == "ok"


def test_a_settings_file_of_nccl(clinic: Any) -> None:
    (clinic.home / ".nccl.conf").write_text("NCCL_ALGO=Tree\n")
    finding = faulty("nccl", clinic.look("nccl"), "info")
    assert ".nccl.conf" in finding["seen"]
    assert clinic.look("nccl", before=finding["command"]).severity == "ok"


SCRIPTS = [
    ("tf32", "import torch\ntorch.backends.cuda.matmul.allow_tf32 = True\n", 2),
    ("tf32", "import torch\ntorch.set_float32_matmul_precision('high')\n", 2),
    ("tf32", "from transformers import TrainingArguments as T\na = T(\n    tf32=True,\n)\n", 2),
    ("tf32", "import torch\ntorch.backends.fp32_precision = 'tf32'\n", 2),
    ("cudnn-benchmark", "import torch\n\ntorch.backends.cudnn.benchmark = True\n", 3),
    ("cudnn-benchmark", "from torch.backends import cudnn\ncudnn.benchmark = True\n", 2),
    ("cudnn-benchmark", "import lightning as L\nL.Trainer(benchmark=True)\n", 2),
    (
        "cudnn-benchmark",
        "import torch\nwith torch.backends.cudnn.flags(benchmark=True):\n    1\n",
        2,
    ),
    ("cudnn-benchmark", "from torch.backends import cudnn\ncudnn.set_flags(False, True)\n", 2),
    ("warn-only", "import torch\ntorch.use_deterministic_algorithms(True, warn_only=True)\n", 2),
    ("warn-only", "import torch\ntorch.set_deterministic_debug_mode('warn')\n", 2),
    ("warn-only", "import torch\ntorch.set_deterministic_debug_mode(debug_mode=1)\n", 2),
]


@pytest.mark.parametrize(("check", "source", "line"), SCRIPTS)
def test_a_script_of_the_folder_is_read(clinic: Any, check: str, source: str, line: int) -> None:
    script = clinic.write("scripts/train.py", source)
    finding = faulty(check, clinic.look(check), "warning")
    assert f"scripts/train.py:{line}: " in finding["seen"]
    assert finding["scope"] == "scripts"
    # The remedy is to write the opposite.
    for old, new in (
        ("True", "False"), ("'high'", "'highest'"), ("'tf32'", "'ieee'"), ("'warn'", "'error'"),
        ("=1", "=2"),
    ):  # fmt: skip
        source = source.replace(old, new)
    script.write_text(source)
    assert clinic.look(check).severity == "ok"


def test_scripts_that_only_look_so_are_left_alone(clinic: Any) -> None:
    """Words in texts and comments, files that are not Python, other people's packages."""
    clinic.write(
        "a.py", '"""torch.backends.cudnn.benchmark = True"""  # warn_only=True tf32=True\n'
    )
    clinic.write("b.py", "benchmark = True\nallow_tf32 = True\nrun(benchmark=True)\n")
    clinic.write("c.py", "cudnn.benchmark = True this is no Python\n")
    fault = "import torch\ntorch.backends.cudnn.benchmark = True\n"
    clinic.write("own-env/pyvenv.cfg", "")
    for name in ("own-env/d.py", ".cache/d.py", "tests/d.py", "x/y/z/d.py", "e.txt"):
        clinic.write(name, fault)
    for check in ("cudnn-benchmark", "tf32", "warn-only"):
        assert clinic.look(check).severity == "ok"


def test_caches_of_kernels_are_found_and_removed(clinic: Any) -> None:
    assert clinic.look("autotune-caches").severity == "ok"
    (clinic.home / ".triton" / "cache" / "abc").mkdir(parents=True)
    cache = clinic.root / "tmp" / "a cache"
    env = {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    compiled(cache)
    finding = faulty("autotune-caches", clinic.look("autotune-caches", env=env), "info")
    assert ".triton/cache" in finding["seen"]
    assert "a cache" in finding["seen"]
    clinic.shell(finding["command"])
    assert clinic.look("autotune-caches", env=env).severity == "ok"


def compiled(folder: Path) -> None:
    """Put a compiled kernel into a folder, as the compiler does."""
    (folder / "fxgraph" / "c5").mkdir(parents=True)
    (folder / "5u").mkdir()
    (folder / "5u" / f"c5u{'j' * 49}.so").touch()


@pytest.mark.parametrize("variable", ["TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"])
@pytest.mark.parametrize("named", ["/", "{home}/.", "{root}", ".", "..", "{work}/link"])
def test_no_remedy_removes_a_folder_that_is_lived_in(
    clinic: Any, variable: str, named: str
) -> None:
    """Kernels lie in it, and so does whatever else is there: /, home, here, and all above."""
    for folder in (clinic.home, clinic.folder):
        compiled(folder)
    (clinic.folder / "link").symlink_to(clinic.home)
    places = {"home": clinic.home, "root": clinic.root, "work": clinic.folder}
    told = clinic.look("autotune-caches", env={variable: named.format_map(places)})
    finding = faulty("autotune-caches", told, "info")
    assert finding["command"] is None
    assert "holds more than kernels" in finding["remedy"]


@pytest.mark.parametrize("stranger", ["thesis.tex", "go/main.go", "results/log.txt"])
def test_no_remedy_removes_what_is_no_kernel(clinic: Any, stranger: str) -> None:
    folder = clinic.folder / "cache"
    compiled(folder)
    env = {"TORCHINDUCTOR_CACHE_DIR": str(folder)}
    finding = faulty("autotune-caches", clinic.look("autotune-caches", env=env), "info")
    assert finding["command"] == f"rm -r -- {folder}"
    clinic.write(f"cache/{stranger}", "mine")
    (clinic.home / ".triton" / "cache" / "abc").mkdir(parents=True)
    finding = faulty("autotune-caches", clinic.look("autotune-caches", env=env), "info")
    assert finding["command"] == f"rm -r -- {clinic.home}/.triton/cache", "the other is Triton's"
    assert f"{folder} holds more than kernels" in finding["remedy"]


def test_flash_attention(clinic: Any, package: Any, wheel: Any) -> None:
    assert clinic.look("flash-attention").severity == "ok"
    env = package("flash-attn", "2.3.6")
    finding = faulty("flash-attention", clinic.look("flash-attention", env=env), "warning")
    assert "flash-attn 2.3.6" in finding["seen"]
    env = wheel("flash-attn", "2.8.0")
    clinic.shell(finding["command"], env)
    newer = faulty("flash-attention", clinic.look("flash-attention", env=env), "info")
    assert "FLASH_ATTENTION_DETERMINISTIC is not 1" in newer["seen"]
    told = clinic.look("flash-attention", env=env, before=newer["command"])
    assert told.severity == "ok"


def test_cublas_workspace_on_a_cuda_build(clinic: Any, torch_package: Any) -> None:
    env = torch_package(cuda="13.0")
    finding = faulty("cublas-workspace", clinic.look("cublas-workspace", env=env), "info")
    assert "mltune sets :4096:8" in finding["seen"]
    told = clinic.look("cublas-workspace", env=env, before=finding["command"])
    assert told.severity == "ok"
