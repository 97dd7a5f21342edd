"""The installed doctor in an environment of its own, and the faults that are planted there.

Faults are real where a test can make them: variables, files, mounts, limits, repositories, servers.
A GPU is not to be had, so its driver is a library compiled for the test, `nvidia-smi` a script, and
torch a package in front of the real one, which only the doctor's own process imports.
"""

import json
import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# What the machine of the tests may have set, and a fault may be.
CLEARED = (
    "ATEN_", "CUBLAS", "CUDA_", "CUDNN", "DNNL_", "DOCKER_", "FLASH_ATTENTION", "GIT_", "GOMP_",
    "HF_", "HUGGING", "KMP_", "LD_", "MKL_", "MLTUNE_CACHE", "NCCL_", "NVIDIA_", "OMP_", "ONEDNN_",
    "OPENBLAS_", "PYTHON", "PYTORCH_", "TMPDIR", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TRITON_",
    "XDG_",
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """What the doctor said, and how it ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        return json.loads(self.stdout)

    def findings(self, check: str | None = None) -> list[dict[str, Any]]:
        """The findings of a check, or of all."""
        return [
            finding
            for one in self.report["checks"]
            for finding in one["findings"]
            if check in (None, one["name"])
        ]

    @property
    def finding(self) -> dict[str, Any]:
        """The one finding that there is."""
        (finding,) = self.findings()
        return finding

    @property
    def severity(self) -> str:
        """The worst of the only check that ran."""
        (check,) = self.report["checks"]
        return check["severity"]


@dataclass(frozen=True)
class Clinic:
    """A working folder, a home, and the doctor run there as a process."""

    command: Path
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "work"

    @property
    def home(self) -> Path:
        return self.root / "home"

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(CLEARED)}
        own = {
            "HOME": str(self.home),
            "TMPDIR": str(self.root / "tmp"),
            "PATH": f"{self.root / 'bin'}:{self.command.parent}:{os.environ['PATH']}",
            "DOCKER_HOST": f"unix://{self.root}/no-engine.sock",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CEILING_DIRECTORIES": str(self.root),
            "COLUMNS": "200",
        }
        return {**kept, **own, **(env or {})}

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        before: str = "",
        timeout: float = 60,
        wrapper: Sequence[str] = (),
    ) -> Told:
        """Run the doctor; `before` is shell text that the same shell runs first."""
        script = f'{before}\nexec "$@"'
        command = ["bash", "-ec", script, "bash", str(self.command), "doctor"]
        done = subprocess.run(
            [*wrapper, *command, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(env),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Told(done.returncode, done.stdout, done.stderr)

    def look(
        self, check: str, *arguments: str | Path, env: Mapping[str, str] | None = None, **more: Any
    ) -> Told:
        """Run one check; what it said must be JSON."""
        told = self.run("--json", "--only", check, *arguments, env=env, **more)
        assert told.stderr == ""
        assert told.report["schema_name"] == "mltune.doctor/1"
        return told

    def shell(self, command: str, env: Mapping[str, str] | None = None) -> None:
        """Run a remedy as a user would, and require that it works."""
        done = subprocess.run(
            ["bash", "-ec", command], cwd=self.folder, env=self.environment(env),
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """Write a file into the working folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        path.chmod(mode)
        return path

    def recipe(self, text: str = "", *, model: str = "mltune/tiny", device: str = "cpu") -> Path:
        """Write a recipe: the bundled model and rows, and what else is given in YAML."""
        rows = "mltune/repro_dataset/train.jsonl"
        base = {"model": {"name_or_path": model, "device": device}, "data": {"train": rows}}
        import yaml

        for section, values in (yaml.safe_load(textwrap.dedent(text)) or {}).items():
            if isinstance(values, dict):
                base[section] = {**base.get(section, {}), **values}
            else:
                base[section] = values
        return self.write("recipe.yaml", yaml.safe_dump(base))

    def program(self, name: str, script: str) -> None:
        """Put a program in front of all others on the path."""
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{textwrap.dedent(script)}\n", encoding="utf-8")
        path.chmod(0o755)


@pytest.fixture
def clinic(mltune_command: Path, tmp_path: Path) -> Clinic:
    """An empty working folder and home, and no GPU, no engine, no hub."""
    for name in ("work", "home", "tmp", "bin"):
        (tmp_path / name).mkdir()
    return Clinic(mltune_command, tmp_path)


Plant = Callable[..., dict[str, str]]


@pytest.fixture
def package(clinic: Clinic) -> Plant:
    """Make the doctor believe that a package is installed: `package("peft", "0.17.0")`.

    Returns the environment in which it does. `asks` are its requirements; `files` its modules.
    """
    site = clinic.root / "site"
    site.mkdir()

    def plant(
        name: str, version: str, asks: Sequence[str] = (), files: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
        lines += [f"Requires-Dist: {one}" for one in asks]
        (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "INSTALLER").write_text("pip\n", encoding="utf-8")
        for path, text in (files or {}).items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(textwrap.dedent(text), encoding="utf-8")
        return {"PYTHONPATH": str(site)}

    return plant


@pytest.fixture
def wheel(clinic: Clinic) -> Callable[[str, str], dict[str, str]]:
    """Put a wheel where pip finds it, and let it install into a folder in front of all others.

    Returns the environment for both.
    """
    import zipfile

    house, target = clinic.root / "wheels", clinic.root / "target"
    house.mkdir()
    target.mkdir()

    def make(name: str, version: str) -> dict[str, str]:
        stem = f"{name.replace('-', '_')}-{version}"
        info = f"{stem}.dist-info"
        with zipfile.ZipFile(house / f"{stem}-py3-none-any.whl", "w") as archive:
            archive.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            )
            archive.writestr(
                f"{info}/WHEEL",
                "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            archive.writestr(f"{info}/RECORD", "")
        return {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(house),
            "PIP_TARGET": str(target),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONPATH": f"{target}:{clinic.root / 'site'}",
        }

    return make


FALSE_TORCH = """
import json, os, warnings
from types import SimpleNamespace as Space
from torch import version
from torch.version import __version__

said = json.loads(os.environ["FALSE_TORCH"])
gpus = said.get("gpus", [])

def is_available():
    if said.get("warning"):
        warnings.warn(said["warning"])
    return bool(gpus)

def properties(index):
    gpu = gpus[index]
    return Space(name=gpu["name"], major=gpu["capability"][0], minor=gpu["capability"][1],
                 total_memory=gpu.get("total", 80 << 30))

cuda = Space(is_available=is_available, device_count=lambda: len(gpus),
             get_device_properties=properties,
             mem_get_info=lambda i: (gpus[i].get("free", 79 << 30), gpus[i].get("total", 80 << 30)))
_C = Space(_cuda_getArchFlags=lambda: " ".join(said.get("architectures", ["sm_80", "sm_90"])))
backends = Space(
    cpu=Space(get_cpu_capability=lambda: "AVX2"),
    cudnn=Space(benchmark=False, allow_tf32=True),
    cuda=Space(matmul=Space(allow_tf32=False)))
are_deterministic_algorithms_enabled = lambda: False
is_deterministic_algorithms_warn_only_enabled = lambda: False
get_float32_matmul_precision = lambda: "highest"
"""


@pytest.fixture
def torch_package(package: Plant) -> Plant:
    """A torch in front of the real one: `torch_package(cuda="13.0", gpus=[...])`."""

    def plant(cuda: str | None = "13.0", version: str = "2.13.0", **said: Any) -> dict[str, str]:
        body = f"__version__ = {version!r}\ncuda = {cuda!r}\nhip = None\n"
        files = {"torch/__init__.py": FALSE_TORCH, "torch/version.py": body}
        return package("torch", version, files=files) | {"FALSE_TORCH": json.dumps(said)}

    return plant


H100 = {"name": "NVIDIA H100", "capability": [9, 0]}


@pytest.fixture
def nvidia_smi(clinic: Clinic) -> Callable[..., None]:
    """An nvidia-smi that lists GPUs: `nvidia_smi("NVIDIA H100", driver="580.65.06")`."""

    def plant(*gpus: str, driver: str = "580.65.06") -> None:
        rows = "".join(f"echo '{driver}, {name}'\n" for name in gpus)
        clinic.program("nvidia-smi", rows or "echo 'No devices were found' >&2; exit 6")

    return plant


LIBCUDA = """
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
int cuInit(unsigned flags) {{ {on_init} return {status}; }}
int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}
int cuDeviceGetCount(int *count) {{ *count = {gpus}; return 0; }}
int cuDeviceGetName(char *name, int length, int device) {{
    strncpy(name, "False GPU", length); return 0; }}
"""


@pytest.fixture
def libcuda(clinic: Clinic) -> Plant:
    """A driver library: `libcuda(version=12040, status=0)`; returns where it is found."""
    if shutil.which("gcc") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("gcc is missing, and CI is true")
        pytest.skip("the false driver is compiled, and there is no gcc")
    folder = clinic.root / "driver"
    folder.mkdir()

    def plant(
        version: int = 13000, status: int = 0, gpus: int = 1, on_init: str = ""
    ) -> dict[str, str]:
        source = folder / "cuda.c"
        values = {"version": version, "status": status, "gpus": gpus, "on_init": on_init}
        source.write_text(LIBCUDA.format(**values), encoding="utf-8")
        library = folder / "libcuda.so.1"
        command = ["gcc", "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        return {"LD_LIBRARY_PATH": str(folder)}

    return plant
