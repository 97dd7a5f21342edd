"""The lock files satisfy pyproject.toml, and each kind of disorder is seen and named."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "tools" / "lock.py"
CORE, GPU, DEV = "requirements.txt", "requirements-gpu.txt", "requirements-dev.txt"
FILES = ("pyproject.toml", CORE, GPU, DEV)
DIGEST = "0" * 64


def load_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mltune_tools_lock", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


lock = load_program()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in FILES:
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def change(path: Path, pattern: str, replacement: str) -> None:
    """Replace the one place where ``pattern`` matches; a fault that was not planted fails here."""
    text, count = re.subn(pattern, replacement, path.read_text(encoding="utf-8"), flags=re.M)
    assert count == 1, f"{pattern} matches {count} times"
    path.write_text(text, encoding="utf-8")


def block(name: str) -> str:
    return rf"^{name}==.*(?:\n    --hash=.*)+\n"


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def pinned(name: str, version: str = "1.0") -> str:
    return f"{name}=={version} \\\n    --hash=sha256:{DIGEST}\n"


def test_the_locks_of_this_project_are_in_order() -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("name", "least"), [(CORE, 50), (GPU, 70), (DEV, 80)])
def test_every_line_of_a_lock_was_read(name: str, least: int) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    pins, strays = lock.parse_lock(text)
    assert strays == []
    assert len(pins) == len(re.findall(r"^[\w.-]+==", text, flags=re.M)) >= least
    assert sum(len(pin.hashes) for pin in pins) == text.count("--hash=sha256:")


@pytest.mark.parametrize("name", [CORE, GPU, DEV])
def test_a_lock_is_what_the_program_writes(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    (which,) = [one for one in lock.LOCKS if one.name == name]
    assert lock.render_lock(which, lock.parse_lock(text)[0]) == text


def drop_dependency(root: Path) -> None:
    change(root / CORE, block("pyarrow"), "")


def drop_extra(root: Path) -> None:
    change(root / GPU, block("liger-kernel"), "")


def drop_tool(root: Path) -> None:
    change(root / DEV, block("pytest-xdist"), "")


def raise_range(root: Path) -> None:
    change(root / "pyproject.toml", r'"transformers>=[^"]*"', '"transformers>=99"')


def add_dependency(root: Path) -> None:
    change(root / "pyproject.toml", r"^dependencies = \[", 'dependencies = ["brand-new>=1",')


def limit_to_one_python(root: Path) -> None:
    change(root / DEV, r"^numpy==(\S+)", r"numpy==\1 ; python_version == '3.11'")


def pin_twice(root: Path) -> None:
    append(root / CORE, pinned("numpy"))


def add_cuda(root: Path) -> None:
    append(root / CORE, pinned("nvidia-cublas"))


def add_triton_to_dev(root: Path) -> None:
    append(root / DEV, pinned("triton"))


def put_cuda_torch_in_core(root: Path) -> None:
    change(root / CORE, r"^torch==(\d+\.\d+\.\d+)\+cpu", r"torch==\1")


def change_torch_digest(root: Path) -> None:
    digest = lock.TORCH_CPU_SHA256["3.12"]
    change(root / DEV, digest, DIGEST)


def put_cpu_torch_in_gpu(root: Path) -> None:
    change(root / GPU, r"^torch==(\S+)", r"torch==\1+cpu")


def add_address(root: Path) -> None:
    append(root / GPU, "# see https://example.invalid/simple\n")


def add_index_option(root: Path) -> None:
    append(root / CORE, "--index-url wheels\n")


def add_folder(root: Path) -> None:
    append(root / DEV, "-e .\n")


def drop_hashes(root: Path) -> None:
    change(root / CORE, r"^(pyyaml==\S+).*(?:\n    --hash=.*)+\n", r"\1\n")


def leave_range_unpinned(root: Path) -> None:
    change(root / CORE, r"^pyyaml==", "pyyaml>=")


def part_dev_from_core(root: Path) -> None:
    change(root / DEV, r"^fsspec==\S+", "fsspec==2020.1.0")


def part_gpu_from_core(root: Path) -> None:
    change(root / GPU, block("fsspec"), "")


def declare_a_python(root: Path) -> None:
    change(
        root / "pyproject.toml",
        r'^  "Programming Language :: Python :: 3.13",',
        '  "Programming Language :: Python :: 3.13",\n  "Programming Language :: Python :: 3.99",',
    )


def remove_a_lock(root: Path) -> None:
    (root / DEV).unlink()


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (drop_dependency, "requirements.txt does not pin pyarrow (Python 3.11, 3.12, 3.13)."),
    (drop_extra, "requirements-gpu.txt does not pin liger-kernel (Python 3.11, 3.12, 3.13)."),
    (drop_tool, "requirements-dev.txt does not pin pytest-xdist (Python 3.11, 3.12, 3.13)."),
    (raise_range, "requirements.txt pins transformers at "),
    (add_dependency, "requirements-dev.txt does not pin brand-new (Python 3.11, 3.12, 3.13)."),
    (limit_to_one_python, "requirements-dev.txt does not pin numpy (Python 3.12, 3.13)."),
    (pin_twice, "requirements.txt pins numpy more than once (Python 3.11, 3.12, 3.13)."),
    (add_cuda, "requirements.txt: nvidia-cublas belongs to CUDA, and this lock is for the CPU."),
    (add_triton_to_dev, "requirements-dev.txt: triton belongs to CUDA,"),
    (put_cuda_torch_in_core, "requirements.txt: torch is not the CPU build"),
    (change_torch_digest, "requirements-dev.txt: torch is not the CPU build"),
    (put_cpu_torch_in_gpu, "requirements-gpu.txt: torch 2.13.0+cpu is not the CUDA build"),
    (add_address, "requirements-gpu.txt holds an address (https:...)."),
    (add_index_option, "requirements.txt: not a hash-pinned requirement: --index-url wheels"),
    (add_folder, "requirements-dev.txt: not a hash-pinned requirement: -e ."),
    (drop_hashes, "requirements.txt: pyyaml has no hash."),
    (leave_range_unpinned, "requirements.txt: not a hash-pinned requirement: pyyaml>="),
    (part_dev_from_core, "requirements-dev.txt does not hold fsspec at "),
    (part_gpu_from_core, "requirements-gpu.txt does not hold fsspec at "),
    (declare_a_python, "pyproject.toml and tools/lock.py disagree about Python 3.99."),
    (remove_a_lock, "requirements-dev.txt cannot be read: No such file or directory."),
]


@pytest.mark.parametrize(("plant", "sentence"), FAULTS, ids=[f[0].__name__ for f in FAULTS])
def test_a_planted_fault_is_named(
    plant: Callable[[Path], None],
    sentence: str,
    project: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert lock.main(["--check", "--root", str(project)]) == 0
    plant(project)
    assert lock.main(["--check", "--root", str(project)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith(sentence) for line in lines), lines
    assert "tools/lock.py" in lines[-1]


@pytest.mark.parametrize(
    ("pattern", "replacement", "sentence"),
    [
        (r"^\[project\]$", "[project", "pyproject.toml cannot be read: "),
        (
            r"^\[project\]$",
            "[elsewhere]",
            "pyproject.toml has no classifiers in its [project] table.",
        ),
        (r'"typer>=[^"]*"', '"typer >< 1"', "A requirement for requirements.txt cannot be read: "),
        (
            r"^qlora = .*$",
            "",
            "pyproject.toml does not declare the extra qlora of requirements-gpu",
        ),
    ],
)
def test_an_unreadable_project_is_trouble_not_a_verdict(
    pattern: str,
    replacement: str,
    sentence: str,
    project: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(project / "pyproject.toml", pattern, replacement)
    assert lock.main(["--check", "--root", str(project)]) == 2
    assert capsys.readouterr().err.startswith(sentence)


def test_a_resolver_that_fails_leaves_the_locks_alone(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        assert command[:5] == [sys.executable, "-m", "uv", "pip", "compile"]
        return subprocess.CompletedProcess(command, 1, "", "no solution found")

    before = {name: (project / name).read_bytes() for name in FILES}
    monkeypatch.setattr(lock.subprocess, "run", fail)
    assert lock.main(["--root", str(project)]) == 2
    assert "no solution found" in capsys.readouterr().err
    assert {name: (project / name).read_bytes() for name in FILES} == before


def test_writing_keeps_what_is_locked_and_states_the_real_torch(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver here agrees to every seed and adds torch, with the digest of the stand-in."""

    def agree(command: list[str], *, cwd: Path, **_options: object) -> object:
        target = cwd / "lock.txt"
        seeded = target.read_text(encoding="utf-8")
        assert "torch==" not in seeded
        stand_ins = list((cwd / "wheels").glob("torch-*+cpu-py3-none-any.whl"))
        assert len(stand_ins) == 1
        build = "+cpu" if "--find-links" in command else ""
        append(target, pinned("torch", f"{lock.TORCH_VERSION}{build}"))
        return subprocess.CompletedProcess(command, 0, "", "")

    before = {name: (project / name).read_text(encoding="utf-8") for name in FILES}
    monkeypatch.setattr(lock.subprocess, "run", agree)
    assert lock.main(["--root", str(project)]) == 0
    for name in (CORE, DEV):
        assert (project / name).read_text(encoding="utf-8") == before[name]
    parsed, _strays = lock.parse_lock((project / GPU).read_text(encoding="utf-8"))
    expected, _strays = lock.parse_lock(before[GPU])
    assert [pin for pin in parsed if pin.name != "torch"] == [
        pin for pin in expected if pin.name != "torch"
    ]


@pytest.mark.parametrize(
    ("marker", "narrowed"),
    [
        ("", ""),
        ("sys_platform == 'linux' and platform_machine == 'x86_64'", ""),
        ("python_full_version < '3.12' and sys_platform == 'linux'", "python_version == '3.11'"),
        ("python_version >= '3.12'", "python_version == '3.12' or python_version == '3.13'"),
    ],
)
def test_a_marker_is_reduced_to_the_pythons_it_is_for(marker: str, narrowed: str) -> None:
    pin = lock.narrow_marker(lock.Pin("a", "1", marker, (DIGEST,)))
    assert pin == lock.Pin("a", "1", narrowed, (DIGEST,))


@pytest.mark.parametrize("marker", ["sys_platform == 'win32'", "python_version < '3.11'"])
def test_a_pin_for_no_supported_python_is_left_out(marker: str) -> None:
    assert lock.narrow_marker(lock.Pin("a", "1", marker, (DIGEST,))) is None


names = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,5})?", fullmatch=True)
pins = st.builds(
    lock.Pin,
    name=names,
    version=st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,3}){0,3}(\+cpu)?", fullmatch=True),
    marker=st.sampled_from(["", "python_version == '3.11'", "python_version >= '3.12'"]),
    hashes=st.lists(st.from_regex(r"[0-9a-f]{64}", fullmatch=True), max_size=3, unique=True).map(
        lambda digests: tuple(sorted(digests))
    ),
)


@given(st.lists(pins, max_size=6, unique_by=lambda pin: pin.name))
def test_what_is_written_is_what_is_read(written: list[object]) -> None:
    read, strays = lock.parse_lock(lock.render_lock(lock.LOCKS[0], written))
    assert strays == []
    assert sorted(read, key=lambda pin: pin.name) == sorted(written, key=lambda pin: pin.name)
