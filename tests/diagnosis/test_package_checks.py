"""Python, packages, the lock, combinations, torch: each with its fault, and without."""

from __future__ import annotations

from typing import Any

import pytest

from mltune_cli.diagnosis.checks import python as python_check
from mltune_cli.diagnosis.checks.python import PythonFacts


def fault(told: Any, severity: str) -> dict[str, Any]:
    """The only finding of that severity, with its reason and its remedy."""
    (finding,) = [one for one in told.findings() if one["severity"] == severity]
    assert finding["why"]
    assert finding["remedy"]
    return finding


# Python -------------------------------------------------------------------------------------------

GOOD = PythonFacts((3, 12), "CPython", "Linux", "x86_64", True)


def test_the_python_of_the_tests_will_do(clinic: Any) -> None:
    told = clinic.look("python")
    assert (told.code, told.severity) == (0, "ok")
    assert "CPython 3." in told.finding["seen"]


@pytest.mark.parametrize(
    ("change", "severity", "seen", "remedy"),
    [
        ({"version": (3, 10)}, "error", "Python 3.10", "Python 3.11"),
        ({"version": (3, 15)}, "info", "Python 3.15", "try Python 3.13"),
        ({"implementation": "PyPy"}, "error", "PyPy", "CPython"),
        ({"is_64_bit": False}, "error", "of 32 bits", "CPython"),
        ({"system": "Windows"}, "warning", "Windows", "WSL 2"),
        ({"system": "Darwin", "machine": "arm64"}, "warning", "Darwin arm64", "on Linux"),
        ({"machine": "riscv64"}, "warning", "riscv64", "x86_64, aarch64"),
    ],
)
def test_a_python_that_will_not_do(
    change: dict[str, Any], severity: str, seen: str, remedy: str
) -> None:
    assert [one.severity for one in python_check.judge(GOOD)] == ["ok"]
    (finding,) = python_check.judge(PythonFacts(**{**GOOD.__dict__, **change}))
    assert finding.severity == severity
    assert seen in finding.seen
    assert finding.remedy is not None
    assert remedy in finding.remedy


# What mltune needs --------------------------------------------------------------------------------


def test_a_package_that_is_too_old_for_mltune(clinic: Any, package: Any, wheel: Any) -> None:
    assert clinic.look("requirements").severity == "ok"
    told = clinic.look("requirements", env=package("rich", "1.0"))
    assert told.code == 1
    finding = fault(told, "error")
    assert "rich 1.0 (needs >=" in finding["seen"]
    env = wheel("rich", "99.0")
    clinic.shell(finding["command"], env)
    assert clinic.look("requirements", env=env).severity == "ok"


def test_a_package_that_is_missing(clinic: Any, package: Any, wheel: Any) -> None:
    """A mltune that needs one more stands in for an environment that lacks one."""
    env = package("mltune", "0.1.0", ["no-such-package>=2"])
    finding = fault(clinic.look("requirements", env=env), "error")
    assert finding["seen"] == "no-such-package missing"
    env = wheel("no-such-package", "2.1")
    clinic.shell(finding["command"], env)
    assert clinic.look("requirements", env=env).severity == "ok"


# The lock -----------------------------------------------------------------------------------------


def test_another_version_than_the_lock_names(clinic: Any, package: Any, wheel: Any) -> None:
    lock = clinic.write("requirements.txt", "mltune-test-part==2.0\n")
    told = clinic.look("lock", env=package("mltune-test-part", "1.0"))
    assert told.code == 0
    finding = fault(told, "warning")
    assert "mltune-test-part 1.0 instead of 2.0" in finding["seen"]
    assert str(lock) in finding["seen"]
    env = wheel("mltune-test-part", "2.0")
    clinic.shell(finding["command"], env)
    assert clinic.look("lock", env=env).severity == "ok"


def test_a_package_of_the_lock_that_is_missing(clinic: Any, package: Any) -> None:
    clinic.write("requirements.txt", "mltune-test-part==2.0\nother==1.0; python_version < '3'\n")
    finding = fault(clinic.look("lock"), "warning")
    assert "mltune-test-part 2.0 is missing" in finding["seen"]
    assert "1 of 1 packages" in finding["seen"], "a line for another Python does not count"
    told = clinic.look("lock", env=package("mltune-test-part", "2.0+cpu"))
    assert told.severity == "ok", "a build's own mark is no difference where the lock has none"


def test_the_lock_beside_the_recipe_is_taken(clinic: Any) -> None:
    clinic.write("requirements.txt", "typer==0.0.1\n")
    recipe = clinic.recipe()
    (clinic.folder / "project").mkdir()
    moved = recipe.rename(clinic.folder / "project" / "recipe.yaml")
    clinic.write("project/requirements.txt", "rich==0.0.1\n")
    finding = fault(clinic.look("lock", "--config", moved), "warning")
    assert "rich" in finding["seen"]
    assert "typer" not in finding["seen"]


def test_of_two_locks_the_one_for_the_build_of_torch(clinic: Any, torch_package: Any) -> None:
    clinic.write("requirements.txt", "typer==0.0.1\n")
    clinic.write("requirements-gpu.txt", "rich==0.0.1\n")
    assert "typer" in fault(clinic.look("lock"), "warning")["seen"]
    told = clinic.look("lock", env=torch_package(cuda="13.0"))
    assert "rich" in fault(told, "warning")["seen"]


def test_a_lock_that_pins_nothing(clinic: Any) -> None:
    clinic.write("requirements.txt", "typer>=0.1\nrich\n")
    finding = fault(clinic.look("lock"), "warning")
    assert "pins no version (2 lines" in finding["seen"]
    clinic.shell(finding["command"].replace("freeze", "freeze --exclude mltune"))
    (clinic.folder / "requirements.txt").unlink()
    assert "packages are those of" in clinic.look("lock").stdout


def test_a_lock_that_cannot_be_read(clinic: Any) -> None:
    (clinic.folder / "requirements.txt").write_bytes(b"\xff\xfe==1\n")
    told = clinic.look("lock")
    assert told.code == 1
    assert "is not UTF-8" in fault(told, "error")["seen"]


def test_a_file_of_another_name_is_no_lock(clinic: Any) -> None:
    """Requirements of documentation and tests say nothing about the environment that trains."""
    for name in ("docs", "dev", "test"):
        clinic.write(f"requirements-{name}.txt", "sphinx==0.0.1\n")
    assert "mltune's own requirements.txt" in clinic.look("lock").finding["seen"]
    lock = clinic.write("requirements.txt", "typer>=0.1\n")
    assert f"{lock} pins no version" in fault(clinic.look("lock"), "warning")["seen"]


def test_a_file_beside_the_lock_that_cannot_be_read(clinic: Any, package: Any) -> None:
    lock = clinic.write("requirements.txt", "mltune-test-part==2.0\n")
    for name in ("requirements-docs.txt", "requirements-gpu.txt"):
        (clinic.folder / name).write_bytes("# caf\xe9\nsphinx==1\n".encode("latin-1"))
    told = clinic.look("lock", env=package("mltune-test-part", "2.0"))
    assert (told.severity, told.finding["seen"]) == ("ok", f"1 packages are those of {lock}")
    lock.write_text("typer>=0.1\n")
    seen = fault(clinic.look("lock"), "warning")["seen"]
    assert f"{lock} pins no version" in seen
    assert "requirements-gpu.txt: cannot be read: is not UTF-8" in seen


def test_without_a_lock_mltunes_own_is_only_said(clinic: Any, package: Any) -> None:
    told = clinic.look("lock", env=package("rich", "13.9.1"))
    finding = fault(told, "info")
    assert "rich 13.9.1 instead of" in finding["seen"]
    assert "mltune's own requirements.txt" in finding["seen"]


# Combinations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packages", "severity", "seen", "mend"),
    [
        (
            {"peft": "0.17.1", "transformers": "5.1.0"},
            "error",
            "peft 0.17.1 with",
            ("peft", "0.30"),
        ),
        (
            {"liger-kernel": "0.6.2", "transformers": "5.1.0"},
            "warning",
            "liger-kernel 0.6.2 with",
            ("liger-kernel", "0.9"),
        ),
        (
            {"torch": "2.2.0", "numpy": "2.1.0"},
            "error",
            "torch 2.2.0 with numpy",
            ("numpy", "1.26"),
        ),
    ],
)
def test_a_pair_that_is_known_to_be_bad(
    clinic: Any,
    package: Any,
    wheel: Any,
    packages: dict[str, str],
    severity: str,
    seen: str,
    mend: tuple[str, str],
) -> None:
    for name, version in packages.items():
        env = package(name, version)
    told = clinic.look("combinations", env=env)
    (finding,) = [one for one in told.findings() if seen in one["seen"]]
    assert finding["severity"] == severity
    assert finding["why"]
    env = wheel(*mend)
    clinic.shell(finding["command"], env)
    mended = clinic.look("combinations", env=env)
    assert not [one for one in mended.findings() if seen in one["seen"]]


def test_a_package_that_does_not_get_what_it_asks_for(clinic: Any, package: Any) -> None:
    assert clinic.look("combinations").severity == "ok"
    env = package("trl", "0.20.0", ["transformers<5", "mltune-test-part", "x; extra == 'all'"])
    told = clinic.look("combinations", env=env)
    assert told.code == 0
    seen = {one["seen"]: one for one in told.findings()}
    (asked,) = [text for text in seen if "trl 0.20.0 asks for transformers<5" in text]
    assert seen[asked]["severity"] == "warning"
    assert "'transformers<5'" in seen[asked]["command"]
    (missing,) = [text for text in seen if "mltune-test-part is not installed" in text]
    assert seen[missing]["severity"] == "warning"
    assert not [text for text in seen if " x " in text], "an extra that nobody asked for"


def test_what_has_nothing_to_do_with_training_is_only_said(clinic: Any, package: Any) -> None:
    told = clinic.look("combinations", env=package("some-web-thing", "1.0", ["no-such-package"]))
    assert [one["severity"] for one in told.findings()] == ["info"]


def test_bitsandbytes_without_the_library_of_this_cuda(
    clinic: Any, package: Any, torch_package: Any
) -> None:
    env = torch_package(cuda="13.0")
    recipe = clinic.recipe("model: {base_precision: nf4}", device="auto")
    finding = next(
        one
        for one in clinic.look("combinations", "--config", recipe, env=env).findings()
        if "bitsandbytes is not installed" in one["seen"]
    )
    assert finding["severity"] == "error"
    assert finding["command"].endswith("pip install bitsandbytes")
    package("bitsandbytes", "0.46.0", files={"bitsandbytes/__init__.py": ""})
    told = clinic.look("combinations", "--config", recipe, env=env)
    found = [one for one in told.findings() if "has no libbitsandbytes_cuda130.so" in one["seen"]]
    assert [one["severity"] for one in found] == ["error"]
    (clinic.root / "site" / "bitsandbytes" / "libbitsandbytes_cuda130.so").touch()
    told = clinic.look("combinations", "--config", recipe, env=env)
    assert not [one for one in told.findings() if "bitsandbytes" in one["seen"]]


def test_four_bits_on_a_cpu_build(clinic: Any, package: Any) -> None:
    env = package("bitsandbytes", "0.48.0", files={"bitsandbytes/__init__.py": ""})
    recipe = clinic.recipe("model: {base_precision: nf4}")
    told = clinic.look("combinations", "--config", recipe, env=env)
    finding = fault(told, "error")
    assert "CPU build, and model.base_precision is nf4" in finding["seen"]
    value = finding["command"].rpartition("--set ")[2]
    mended = clinic.look("combinations", "--config", recipe, "--set", value, env=env)
    assert mended.severity == "ok"


# Torch --------------------------------------------------------------------------------------------


def test_the_real_torch_is_asked(clinic: Any) -> None:
    told = clinic.look("torch")
    assert told.severity == "ok"
    assert "CPU build" in told.finding["seen"]
    machine = told.report["machine"]
    assert machine["instruction_set"]
    assert machine["settings"]["warn_only"] is False


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import no_such_module_of_torch", "ModuleNotFoundError: No module named 'no_such_module"),
        ("raise OSError('libcudnn.so.9: cannot open shared object')", "libcudnn.so.9: cannot open"),
        ("import os; print('glibc too old', flush=True); os.abort()", "killed by signal 6"),
        ("import os; print('last words', flush=True); os._exit(3)", "it printed: last words"),
        ("raise SystemExit(4)", "status 4"),
    ],
)
def test_a_torch_that_cannot_be_imported(clinic: Any, package: Any, source: str, seen: str) -> None:
    files = {"torch/__init__.py": source, "torch/version.py": "__version__ = '2.13.0'\ncuda = None"}
    told = clinic.look("torch", env=package("torch", "2.13.0", files=files))
    assert told.code == 1
    finding = fault(told, "error")
    assert "torch 2.13.0 cannot be imported" in finding["seen"]
    assert seen in finding["seen"]
    assert finding["command"].endswith("--force-reinstall torch")


def test_a_cpu_build_for_a_recipe_on_cuda(clinic: Any) -> None:
    recipe = clinic.recipe(device="cuda")
    told = clinic.look("torch", "--config", recipe)
    assert told.code == 1
    finding = fault(told, "error")
    assert "is a CPU build, and model.device is cuda" in finding["seen"]
    value = finding["command"].rpartition("--set ")[2]
    assert clinic.look("torch", "--config", recipe, "--set", value).severity == "ok"


def test_a_cpu_build_on_a_machine_with_a_gpu(clinic: Any, nvidia_smi: Any) -> None:
    recipe = clinic.recipe(device="auto")
    assert clinic.look("torch", "--config", recipe).severity == "ok"
    nvidia_smi("NVIDIA H100")
    finding = fault(clinic.look("torch", "--config", recipe), "warning")
    assert "this machine has NVIDIA H100" in finding["seen"]
    assert "without a word" in finding["why"]


def test_a_slow_import_is_said(clinic: Any, torch_package: Any) -> None:
    env = torch_package(cuda=None)
    assert clinic.look("torch", env=env).severity == "ok"
    slow = clinic.root / "site" / "torch" / "__init__.py"
    slow.write_text("import time; time.sleep(5.2)\n" + slow.read_text())
    finding = fault(clinic.look("torch", env=env), "info")
    assert "importing torch took 5." in finding["seen"]


def test_a_rocm_build_is_said(clinic: Any, torch_package: Any) -> None:
    env = torch_package(cuda=None)
    version = clinic.root / "site" / "torch" / "version.py"
    version.write_text(version.read_text().replace("hip = None", "hip = '6.4'"))
    assert "ROCm build" in fault(clinic.look("torch", env=env), "info")["seen"]
