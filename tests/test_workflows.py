"""The GitHub workflows and the action: what their steps do, run as a runner runs them."""

import itertools
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

OUTCOMES = ("success", "failure", "cancelled", "skipped")
# As the runner starts them: without a named shell, and with `shell: bash`.
SHELL = ("bash", "-e")
NAMED_SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail")

Steps = Callable[..., tuple[int, str]]


def read(path: Path) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def files(project: Path) -> list[Path]:
    found = sorted((project / ".github" / "workflows").glob("*.yml"))
    assert len(found) >= 3
    return [*found, project / "action.yml"]


def nodes(value: Any) -> Iterator[dict[Any, Any]]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from nodes(child)
    elif isinstance(value, list):
        for child in value:
            yield from nodes(child)


def test_every_action_is_pinned_by_commit_and_no_step_is_open_to_injection(project: Path) -> None:
    pinned: dict[str, set[str]] = {}
    scripts = 0
    for path in files(project):
        for used in re.findall(r"uses: (\S.*)", path.read_text(encoding="utf-8")):
            match = re.fullmatch(r"([\w./-]+)@([0-9a-f]{40}) # v[\d.]+", used)
            assert match, f"{path}: {used}"
            pinned.setdefault(match[1], set()).add(match[2])
        for node in nodes(read(path)):
            if "run" in node and isinstance(node["run"], str):
                scripts += 1
                # What a script needs of the event comes to it as a variable.
                assert "${{" not in node["run"], node
    assert all(len(commits) == 1 for commits in pinned.values()), pinned
    assert scripts >= 10


def test_every_job_has_least_rights_and_an_end(project: Path) -> None:
    jobs = 0
    for path in files(project)[:-1]:
        workflow = read(path)
        assert workflow["permissions"] == {}
        assert "concurrency" in workflow
        assert "pull_request_target" not in workflow[True]  # YAML reads the key `on` as true
        for name, job in workflow["jobs"].items():
            jobs += 1
            assert job["timeout-minutes"] <= 90, name
            assert job["permissions"] is not None
            writes = [k for k, v in job["permissions"].items() if v == "write"]
            assert writes == (["packages"] if name == "publish" else [])
            for step in job["steps"]:
                if "checkout" in step.get("uses", ""):
                    assert step["with"]["persist-credentials"] is False
    assert jobs >= 6


def test_own_workflow_is_what_the_template_says(project: Path) -> None:
    from mltune_cli.scaffolding.plan import WORKFLOW, render_workflow

    assert (project / WORKFLOW).read_text(encoding="utf-8") == render_workflow(own=True)


@pytest.mark.parametrize(("cpu", "gpu"), list(itertools.product(OUTCOMES, OUTCOMES)))
def test_the_gate_over_all_outcomes(cpu: str, gpu: str, project: Path, tmp_path: Path) -> None:
    gate = read(project / ".github/workflows/smoke-repro.yml")["jobs"]["gate"]
    # Without `always` a failed job makes the gate skipped, which counts as passed.
    assert gate["if"] == "always()"
    assert gate["needs"] == ["smoke-cpu", "smoke-gpu-docker"]
    (step,) = gate["steps"]
    assert step["env"] == {
        "CPU": "${{ needs.smoke-cpu.result }}",
        "GPU": "${{ needs.smoke-gpu-docker.result }}",
    }
    page = tmp_path / "page.md"
    environment = {**os.environ, "CPU": cpu, "GPU": gpu, "GITHUB_STEP_SUMMARY": str(page)}
    ended = subprocess.run(
        [*SHELL, "-c", step["run"]], env=environment, capture_output=True, text=True
    )
    passes = cpu == "success" and gpu in ("success", "skipped")
    assert (ended.returncode == 0) is passes, ended.stdout
    assert ("::error::" in ended.stdout) is not passes
    assert page.read_text() == f"smoke-cpu: {cpu}; smoke-gpu-docker: {gpu}\n"


def test_no_code_of_a_fork_reaches_the_gpu_runner(project: Path) -> None:
    job = read(project / ".github/workflows/smoke-repro.yml")["jobs"]["smoke-gpu-docker"]
    assert job["runs-on"] == ["self-hosted", "gpu"]
    condition = " ".join(job["if"].split())
    assert "github.event.pull_request.head.repo.full_name == github.repository" in condition
    assert "contains(github.event.pull_request.labels.*.name, 'gpu')" in condition
    names = [step["with"]["name"] for step in job["steps"] if "upload" in step.get("uses", "")]
    assert names == ["smoke-repro-artifacts-docker"]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment, as setup-python leaves one, that sees the packages of this one.

    So the pinned packages are there already, and pip only says so.
    """
    folder = tmp_path_factory.mktemp("runner")
    venv.create(folder, with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    (packages / "above.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture
def steps(runner: Path, tmp_path: Path) -> Steps:
    """Run the `run:` steps of a job in order: the code of the first that fails, and all output."""

    def run(folder: Path, job: Mapping[str, Any], shell: tuple[str, ...] = SHELL) -> Any:
        page = tmp_path / "summary.md"
        output = ""
        scripts = [step for step in job["steps"] if "run" in step]
        assert scripts
        for step in scripts:
            filled = {
                name: "" if "${{" in str(value) else str(value)
                for name, value in step.get("env", {}).items()
            }
            environment = {
                **os.environ,
                "PATH": f"{runner}/bin{os.pathsep}{Path(sys.executable).parent}{os.pathsep}"
                + os.environ["PATH"],
                "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(page),
                "GITHUB_WORKSPACE": str(folder), "HF_HUB_OFFLINE": "1",
                "MLTUNE_CACHE": str(tmp_path / "cache"), "PIP_NO_CACHE_DIR": "1",
                **filled,
            }  # fmt: skip
            ended = subprocess.run(
                [*shell, "-c", step["run"]], cwd=folder, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900,
            )  # fmt: skip
            output += ended.stdout
            if ended.returncode:
                return ended.returncode, output
        return 0, output + page.read_text()

    return run


def smoke_cpu(folder: Path) -> dict[str, Any]:
    jobs = read(folder / ".github/workflows/smoke-repro.yml")["jobs"]
    job: dict[str, Any] = jobs["smoke-cpu"]
    return job


def test_smoke_cpu_in_a_clean_clone(steps: Steps, project: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    if not (project / ".git").exists():
        pytest.skip("not a checkout")
    subprocess.run(["git", "clone", "--quiet", project, clone], check=True)
    code, output = steps(clone, smoke_cpu(clone))
    assert code == 0, output
    assert "there is no golden.json" in output or "reproduced: " in output
    assert "reproducible: 2 runs of smoke" in output or "reproduced: " in output
    for name in ("report.json", "report.xml", "training_log.jsonl", "adapter"):
        assert (clone / "repro_output" / name).exists()
    (clone / "templates/recipes/smoke.yaml").unlink()
    code, output = steps(clone, smoke_cpu(clone))
    assert code == 1
    assert "::error::templates/recipes/smoke.yaml is missing" in output


def test_smoke_cpu_of_a_new_project(
    steps: Steps, mltune: Callable[..., Any], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    assert mltune("init", project, "--ci", "github", cwd=tmp_path).code == 0
    code, output = steps(project, smoke_cpu(project))
    assert code == 0, output
    assert "::notice::there is no golden.json" in output
    golden = mltune(
        "repro-check", "--config", "recipe.yaml", "--record", "golden.json", cwd=project
    )
    assert golden.code == 0
    # The change that the gate is for.
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rate: 5e-3", "learning_rate: 4e-3"))
    code, output = steps(project, smoke_cpu(project))
    assert code == 1, output
    assert "the code changed the result" in output
    assert re.search(r"::error file=recipe.yaml,line=\d+,", output)
    names = [step.get("name", "") for step in smoke_cpu(project)["steps"]]
    kept = smoke_cpu(project)["steps"][names.index("Keep what the runs left")]
    assert kept["if"] == "always()"
    assert kept["with"]["name"] == "smoke-repro-artifacts"


def test_packages_that_are_missing_are_explained(
    steps: Steps, mltune: Callable[..., Any], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    assert mltune("init", project, "--ci", "github", cwd=tmp_path).code == 0
    wrong = "sha256:" + "0" * 64
    (project / "requirements.txt").write_text(f"no-such-package-of-mltune==1.0 --hash={wrong}\n")
    code, output = steps(project, smoke_cpu(project))
    assert code == 1
    assert "is the repository variable TORCH_INDEX_URL the index of PyTorch's CPU builds?" in output


TRAIN = """
import sys, torch
torch.manual_seed(1)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
"""


def test_the_action_checks_a_command(steps: Steps, project: Path, tmp_path: Path) -> None:
    (tmp_path / "my train.py").write_text(TRAIN)
    action = read(project / "action.yml")
    defaults = {name: given.get("default", "") for name, given in action["inputs"].items()}
    check = next(s for s in action["runs"]["steps"] if s["name"] == "Check")
    assert set(check["env"]) == {"CONFIG", "COMMAND", "AGAINST", "RUNS", "VARY"}

    def run(**given: str) -> tuple[int, str]:
        inputs = {**defaults, **given}
        environment = {
            name: inputs[re.findall(r"inputs\.([\w-]+)", expression)[0]]
            for name, expression in check["env"].items()
        }
        job = {"steps": [{**check, "env": environment}]}
        return steps(tmp_path, job, NAMED_SHELL)

    code, output = run(command="python 'my train.py' \"{run}\"", vary="hash-seed\n\numask=0077\n")
    assert code == 0, output
    report = json.loads((tmp_path / "repro_output/report.json").read_text())
    assert report["variation"] == ["hash-seed=1", "umask=0077"]
    # Nothing of an input is taken for a command of the shell.
    for name in ("config", "against", "runs", "vary"):
        code, output = run(**{name: "x; touch planted $(touch planted) `touch planted`"})
        assert code == 2, output
    assert not (tmp_path / "planted").exists()


def test_the_action_needs_three_lines(project: Path) -> None:
    inputs = read(project / "action.yml")["inputs"]
    assert all("default" in given for given in inputs.values())
    page = (project / "docs" / "ci.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"(?s)```yaml\n(- uses: mltune/mltune@.*?)```", page)
    (step,) = yaml.safe_load(example)
    assert len(example.strip().splitlines()) == 3
    assert set(step["with"]) <= set(inputs)
