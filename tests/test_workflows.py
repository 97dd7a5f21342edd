"""The GitHub workflows and the action: valid, safe, and run as a runner runs them.

What a new project gets from `mltune init` is held to the same rules as this project's own.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from mltune_cli.imaging.packed_wheel import pack_wheel
from mltune_cli.scaffolding.project_files import ACTIONS, project_files
from mltune_cli.scaffolding.writing import write_project

SMOKE = Path(".github/workflows/smoke-repro.yml")
OUTCOMES = ("success", "failure", "cancelled", "skipped")
# As a runner starts `shell: bash`.
SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c")
WHOSE = ("own", "new")


def read(path: Path) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `init` writes. Read it, copy it, never change it."""
    folder = tmp_path_factory.mktemp("new") / "project"
    write_project(folder, project_files("project", gpu=True, ci="github"))
    return folder


@pytest.fixture
def folders(project: Path, new_project: Path) -> dict[str, Path]:
    """The two folders with a workflow smoke-repro."""
    return {"own": project, "new": new_project}


@pytest.fixture
def flows(folders: dict[str, Path]) -> list[Path]:
    found = [
        path for folder in folders.values()
        for path in sorted((folder / ".github" / "workflows").glob("*.yml"))
    ]  # fmt: skip
    assert len(found) == 5
    return found


def tool(name: str, *arguments: str | Path, text: str | None = None) -> tuple[int, str]:
    """Run a tool of this environment."""
    program = Path(sys.executable).parent / name
    done = subprocess.run(
        [program, *map(str, arguments)], input=text, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def nodes(value: Any) -> Iterator[dict[Any, Any]]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from nodes(child)
    elif isinstance(value, list):
        for child in value:
            yield from nodes(child)


def scripts_of(path: Path) -> list[str]:
    return [node["run"] for node in nodes(read(path)) if isinstance(node.get("run"), str)]


def test_they_are_valid_by_schema(flows: list[Path], project: Path, tmp_path: Path) -> None:
    for schema, paths in (
        ("github-workflows", flows),
        ("github-actions", [project / "action.yml"]),
        ("dependabot", [project / ".github" / "dependabot.yml"]),
    ):
        code, said = tool("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *paths)
        assert code == 0, said
    broken = tmp_path / "broken.yml"
    broken.write_text(flows[0].read_text().replace("runs-on:", "runs_on:"))
    assert tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", broken)[0] == 1


def test_zizmor_finds_nothing(flows: list[Path], project: Path, tmp_path: Path) -> None:
    def findings(*paths: Path) -> list[dict[str, Any]]:
        done = subprocess.run(
            [Path(sys.executable).parent / "zizmor", "--offline", "--format", "json", *paths],
            capture_output=True, text=True,
        )  # fmt: skip
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    assert findings(*flows, project / "action.yml") == []
    # It does find faults: a credential that stays, an action that may move, an injection.
    broken = tmp_path / ".github" / "workflows" / "broken.yml"
    broken.parent.mkdir(parents=True)
    text = (project / SMOKE).read_text()
    text = text.replace("persist-credentials: false", "fetch-depth: 1")
    text = re.sub(r"setup-python@\w+ #", "setup-python@", text).replace("@ v", "@v")
    text = text.replace(
        "run: .github/install.sh", "run: echo ${{ github.event.pull_request.title }}"
    )
    broken.write_text(text)
    names = {finding["ident"] for finding in findings(broken)}
    assert {"artipacked", "unpinned-uses", "template-injection"} <= names


def test_their_scripts_are_clean_shell(flows: list[Path], project: Path, new_project: Path) -> None:
    count = 0
    for path in (*flows, project / "action.yml"):
        for script in scripts_of(path):
            count += 1
            # What a script needs of the event comes to it as a variable.
            assert "${{" not in script
            code, said = tool("shellcheck", "--shell", "bash", "-", text=script)
            assert code == 0, f"{path}:\n{script}\n{said}"
    assert count >= 18
    for path in (project / ".github" / "install.sh", new_project / "run_repro.sh"):
        assert tool("shellcheck", path) == (0, "")
        assert os.access(path, os.X_OK)


def test_every_action_is_pinned_by_commit_to_one_release(flows: list[Path], project: Path) -> None:
    pinned: dict[str, set[str]] = {}
    for path in (*flows, project / "action.yml"):
        for used in re.findall(r"uses: (\S.*)", path.read_text(encoding="utf-8")):
            match = re.fullmatch(r"([\w./-]+)@([0-9a-f]{40} # v\d+\.\d+\.\d+)", used)
            assert match, f"{path}: {used}"
            pinned.setdefault(match[1], set()).add(match[2])
    # Dependabot moves this project's own; what `init` writes must follow.
    assert all(len(releases) == 1 for releases in pinned.values()), pinned
    for action in ACTIONS.values():
        name, _, release = action.partition("@")
        assert pinned[name] == {release}
    assert len(pinned) == 4


def test_every_job_has_least_rights_and_an_end(flows: list[Path]) -> None:
    jobs = 0
    for path in flows:
        flow = read(path)
        assert flow["permissions"] == {}
        events = flow[True]  # YAML reads the key `on` as true
        assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(events)
        cancels = flow["concurrency"]["cancel-in-progress"]
        if "pull_request" in events:
            assert cancels == "${{ github.event_name == 'pull_request' }}"
        else:
            assert cancels is False
        assert flow["defaults"]["run"]["shell"] == "bash"  # with pipefail
        for name, job in flow["jobs"].items():
            jobs += 1
            assert 5 <= job["timeout-minutes"] <= 120, name
            writes = [k for k, v in job["permissions"].items() if v == "write"]
            assert writes == (["packages"] if name == "publish" else [])
            for step in job["steps"]:
                if "checkout" in step.get("uses", ""):
                    assert step["with"]["persist-credentials"] is False
                if "upload-artifact" in step.get("uses", ""):
                    assert step["if"] == "always()"
                    assert step["with"]["retention-days"] > 0
    assert jobs == 11


def test_both_smoke_workflows_keep_the_promises(folders: dict[str, Path]) -> None:
    flows = {whose: read(folder / SMOKE) for whose, folder in folders.items()}
    own, new = flows["own"], flows["new"]
    assert own["jobs"]["gate"] == new["jobs"]["gate"]
    assert own["jobs"]["smoke-gpu-docker"]["if"] == new["jobs"]["smoke-gpu-docker"]["if"]
    for flow in flows.values():
        assert list(flow["jobs"]) == ["smoke-cpu", "smoke-gpu-docker", "gate"]
        events = flow[True]
        assert events["push"]["branches"] == ["main"]
        assert events["push"]["paths"] == events["pull_request"]["paths"]
        assert str(SMOKE) in events["push"]["paths"]
        assert "labeled" in events["pull_request"]["types"]
        assert len(events["schedule"]) == 1
        kept = {
            name: step["with"]
            for name, job in flow["jobs"].items()
            for step in job["steps"]
            if "upload-artifact" in step.get("uses", "")
        }
        assert {name: (k["name"], k["path"]) for name, k in kept.items()} == {
            "smoke-cpu": ("smoke-repro-artifacts", "repro_output/"),
            "smoke-gpu-docker": ("smoke-repro-artifacts-docker", "image_output/"),
        }
        assert flow["jobs"]["smoke-gpu-docker"]["runs-on"] == ["self-hosted", "gpu"]
    matrix = read(folders["own"] / ".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]
    assert matrix["matrix"]["python"] == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize(("cpu", "gpu"), list(itertools.product((*OUTCOMES, ""), repeat=2)))
@pytest.mark.parametrize("whose", WHOSE)
def test_the_gate_over_all_outcomes(
    whose: str, cpu: str, gpu: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    gate = read(folders[whose] / SMOKE)["jobs"]["gate"]
    # Without `always` a failed job makes the gate skipped, which counts as passed.
    assert gate["if"] == "always()"
    assert gate["needs"] == ["smoke-cpu", "smoke-gpu-docker"]
    (step,) = gate["steps"]
    page = tmp_path / "page.md"
    results = {"needs.smoke-cpu.result": cpu, "needs.smoke-gpu-docker.result": gpu}
    ended = subprocess.run(
        [*SHELL, step["run"]],
        env={**os.environ, **filled(step["env"], results), "GITHUB_STEP_SUMMARY": str(page)},
        capture_output=True, text=True,
    )  # fmt: skip
    opens = cpu == "success" and gpu in ("success", "skipped")
    assert ended.stderr == ""
    assert ended.returncode == (0 if opens else 1)
    assert ("::error::smoke-cpu: " in ended.stdout) is (cpu != "success")
    assert ("::error::smoke-gpu-docker: " in ended.stdout) is (gpu not in ("success", "skipped"))
    # A label would not have helped where smoke-cpu failed.
    assert ("the label gpu asks for it" in ended.stdout) is (cpu == "success" and gpu == "skipped")
    assert f"| smoke-cpu | {cpu} |\n| smoke-gpu-docker | {gpu} |\n" in page.read_text()


EXPRESSION = re.compile(r"\$\{\{ (.*?) \}\}")


def filled(variables: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, str]:
    """Put values in the place of expressions; one that is not foreseen is an error."""
    return {
        name: EXPRESSION.sub(lambda found: values[found[1]], str(text))
        for name, text in variables.items()
    }


def holds(condition: str, github: dict[str, Any], **contexts: Any) -> bool:
    """Evaluate a condition of GitHub's, as far as these workflows use its language."""

    def value_of(path: str) -> Any:
        value: Any = {"github": github, **contexts}
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def contains(listed: list[dict[str, str]] | None, name: str) -> bool:
        return name in [label["name"] for label in listed or []]

    text = condition.replace("&&", " and ").replace("||", " or ").replace(".*.name", "")
    text = re.sub(r"'[^']*'|\b(?:github|vars|inputs)(?:\.\w+)+",
                  lambda m: m[0] if m[0][0] == "'" else f"value_of({m[0]!r})", text)  # fmt: skip
    words = set(re.findall(r"[a-z_]+", re.sub(r"'[^']*'", "", text)))
    assert words <= {"value_of", "contains", "and", "or"}, words
    names = {"value_of": value_of, "contains": contains, "__builtins__": {}}
    return bool(eval(" ".join(text.split()), names))


@pytest.mark.parametrize("whose", WHOSE)
def test_who_gets_the_gpu_runner(whose: str, folders: dict[str, Path]) -> None:
    job = read(folders[whose] / SMOKE)["jobs"]["smoke-gpu-docker"]

    def pull_request(head: str, *labels: str) -> dict[str, Any]:
        return {
            "event_name": "pull_request",
            "repository": "me/project",
            "event": {
                "pull_request": {
                    "head": {"repo": {"full_name": head}},
                    "labels": [{"name": label} for label in labels],
                }
            },
        }

    def runs(github: dict[str, Any], gpu_input: Any = None, gpu_runner: str = "") -> bool:
        return holds(job["if"], github, vars={"GPU_RUNNER": gpu_runner}, inputs={"gpu": gpu_input})

    assert runs(pull_request("me/project", "docs", "gpu"))
    assert not runs(pull_request("me/project", "docs"))
    assert not runs(pull_request("me/project"))
    # Code of a fork reaches no machine of ours, whatever it is labelled and wherever it comes from.
    for runner in ("", "true"):
        assert not runs(pull_request("somebody/project", "gpu"), gpu_runner=runner)
    assert not runs({"event_name": "push"}, gpu_runner="true")
    assert runs({"event_name": "schedule"}, gpu_runner="true")
    assert not runs({"event_name": "schedule"})
    assert runs({"event_name": "workflow_dispatch"}, gpu_input=True)
    assert not runs({"event_name": "workflow_dispatch"}, gpu_input=False)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this environment has installed, less mltune: pip finds the lock fulfilled."""
    if not version("torch").endswith("+cpu"):
        pytest.skip("this environment has another build of torch than the lock for CPUs")
    folder = tmp_path_factory.mktemp("packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"_?_?(editable.*)?_?mltune|__pycache__", entry.name, re.IGNORECASE):
            (folder / entry.name).symlink_to(entry)
    assert (folder / "torch").is_dir()
    return folder


class Runner:
    """Runs the `run:` steps of a job as a runner does, in a fresh Python each."""

    def __init__(self, folder: Path, packages: Path) -> None:
        self.folder = folder
        self.summary = folder / "summary.md"
        self.python = folder / "python"
        venv.create(self.python, with_pip=False)
        library = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = self.python / "lib" / library / "site-packages"
        (site / "installed.pth").write_text(f"{packages}\n")
        (folder / "temp").mkdir()

    def variables(self, workspace: Path) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "MLTUNE_"))}
        # The environment's own programs are no part of the runner.
        others = [p for p in kept["PATH"].split(":") if p != str(Path(sys.executable).parent)]
        return kept | {
            "CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(workspace),
            "GITHUB_STEP_SUMMARY": str(self.summary), "RUNNER_TEMP": str(self.folder / "temp"),
            "HF_HUB_OFFLINE": "1", "MLTUNE_CACHE": str(self.folder / "cache"),
            "PATH": ":".join([str(self.python / "bin"), *others]),
        }  # fmt: skip

    def seeing(self, script: str) -> str:
        """Let the environment that a script makes see what the runner sees, as if downloaded."""
        (site,) = (self.python / "lib").glob("python*/site-packages")
        packages = (site / "installed.pth").read_text().strip()
        seen = f"""
        echo {packages} > "$(echo "$RUNNER_TEMP"/mltune/lib/python*/site-packages)/installed.pth"
        """
        return script.replace('"$RUNNER_TEMP/mltune"\n', f'"$RUNNER_TEMP/mltune"\n{seen}\n')

    def run(
        self, workspace: Path, job: dict[str, Any], values: Mapping[str, str],
        environment: Mapping[str, Any] | None = None, change: Callable[[str], str] = str,
    ) -> tuple[int, str]:  # fmt: skip
        """Return the code of the first step that fails, or 0, and what all of them printed."""
        output = ""
        steps = [step for step in job["steps"] if "run" in step]
        assert steps
        for step in steps:
            named = {**(environment or {}), **job.get("env", {}), **step.get("env", {})}
            ended = subprocess.run(
                [*SHELL, change(step["run"])], cwd=workspace, text=True, timeout=600,
                env=self.variables(workspace) | filled(named, values),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            output += ended.stdout
            if ended.returncode:
                return ended.returncode, output
        return 0, output


@pytest.fixture
def runner(tmp_path: Path, packages: Path) -> Runner:
    folder = tmp_path / "runner"
    folder.mkdir()
    return Runner(folder, packages)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, str]:
    """The repository's variables: an index, which is asked for nothing that is installed."""
    return {"vars.TORCH_INDEX_URL": (tmp_path / "no-index").as_uri()}


@pytest.fixture
def clone(project: Path, tmp_path: Path) -> Path:
    """A clean clone of this project: what is tracked alone, so that a forgotten file is missed."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=project, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    origin = tmp_path / "origin"
    for name in listed.stdout.splitlines():
        if (project / name).is_file():
            (origin / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project / name, origin / name)
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@example.invalid")
    for arguments in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "all")):
        subprocess.run([*git, *arguments], cwd=origin, check=True)
    subprocess.run(["git", "clone", "-q", origin, tmp_path / "clone"], check=True)
    return tmp_path / "clone"


def assert_artifacts(folder: Path) -> None:
    for name in ("report.json", "report.xml", "training_log.jsonl", "last_loss.txt", "adapter"):
        assert (folder / "repro_output" / name).exists(), name


def no_golden(recipe: str) -> str:
    return (
        "::notice::there is no golden.json, so the runs are held against each other alone; "
        f"to keep their result: mltune repro-check --config {recipe} --record golden.json\n"
    )


def test_smoke_cpu_in_a_clean_clone(runner: Runner, clone: Path, values: dict[str, str]) -> None:
    job = read(clone / SMOKE)["jobs"]["smoke-cpu"]
    code, output = runner.run(clone, job, values)
    assert code == 0, output
    assert "Successfully installed mltune-" in output
    assert "reproducible: 2 runs of smoke are equal bit for bit over 20 steps" in output
    assert no_golden("templates/recipes/smoke.yaml") in output
    assert "reproducible" in runner.summary.read_text()
    assert_artifacts(clone)
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
    )
    assert status.stdout == ""  # a job leaves nothing that somebody may commit by mistake
    (clone / "templates/recipes/smoke.yaml").unlink()
    (clone / "requirements.txt").write_text("")
    code, output = runner.run(clone, job, values)
    assert code == 1
    assert "::error::templates/recipes/smoke.yaml is missing or empty" in output
    assert "::error::requirements.txt is missing or empty" in output


def test_a_lock_with_another_hash_installs_nothing(
    runner: Runner, clone: Path, values: dict[str, str]
) -> None:
    """A package that is not what the lock says ends the job, whether pip or the rest is meant."""
    job = read(clone / SMOKE)["jobs"]["smoke-cpu"]
    lock = clone / "requirements.txt"
    wheel = pack_wheel(clone / "wheels")
    digest = "0" * 64
    lock.write_text(f"{lock.read_text()}mltune=={version('mltune')} --hash=sha256:{digest}\n")
    code, output = runner.run(clone, job, values, {"PIP_FIND_LINKS": str(wheel.parent)})
    assert code == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in output
    assert f"Expected sha256 {digest}" in output
    assert not (runner.python / "bin" / "mltune").exists()


def test_smoke_cpu_of_a_new_project(
    runner: Runner, new_project: Path, values: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(new_project, folder)
    flow = read(folder / SMOKE)
    job = flow["jobs"]["smoke-cpu"]
    # As the page of the settings has it: a variable of the repository.
    values |= {"vars.MLTUNE": str(pack_wheel(tmp_path / "wheels"))}

    code, output = runner.run(folder, job, values, flow["env"])
    assert code == 0, output
    assert "reproducible: 2 runs of recipe are equal bit for bit" in output
    assert no_golden("recipe.yaml") in output
    assert_artifacts(folder)
    command = runner.python / "bin" / "mltune"
    recorded = subprocess.run(
        [command, "repro-check", "--config", "recipe.yaml", "--record", "golden.json"],
        cwd=folder, env=runner.variables(folder), capture_output=True, text=True,
    )  # fmt: skip
    assert recorded.returncode == 0, recorded.stderr
    code, output = runner.run(folder, job, values, flow["env"])
    assert code == 0, output
    assert "reproduced: " in output
    assert "there is no golden.json" not in output
    # The change that the gate is for.
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rate: 5e-3", "learning_rate: 4e-3"))
    code, output = runner.run(folder, job, values, flow["env"])
    assert code == 1, output
    assert "the code changed the result" in output
    assert re.search(r"::error file=recipe.yaml,line=\d+,", output)
    assert_artifacts(folder)


@pytest.mark.parametrize("source", ["", "mltune", f"mltune=={version('mltune')}", "mltune[qlora]"])
def test_a_new_project_never_installs_mltune_by_its_bare_name(
    source: str, runner: Runner, new_project: Path, values: dict[str, str]
) -> None:
    """Nobody says that what an index has under this name is this project."""
    flow = read(new_project / SMOKE)
    job = flow["jobs"]["smoke-cpu"]
    code, output = runner.run(new_project, job, values | {"vars.MLTUNE": source}, flow["env"])
    assert code == 2
    assert output == (
        "::error::the repository variable MLTUNE must say where mltune is installed from: "
        "a wheel, or git+https://HOST/OWNER/mltune@COMMIT\n"
    )
    assert flow["jobs"]["smoke-gpu-docker"]["needs"] == "smoke-cpu"


BARE_NAME = re.compile(r"pip3? install[^\n|&`]*[\s'\"]mltune(?![\w./-])")


def test_nothing_installs_mltune_by_its_bare_name(project: Path) -> None:
    kinds = {".md", ".yml", ".yaml", ".j2", ".sh", ".txt", ".toml", ".py", ""}
    pages = [
        path for name in ("docs", "templates", ".github", "benchmarks", "mltune_cli")
        for path in (project / name).rglob("*")
        if path.is_file() and path.suffix in kinds
    ]  # fmt: skip
    pages += [project / name for name in ("README.md", "CONTRIBUTING.md", "action.yml")]
    assert len(pages) > 100
    for path in pages:
        found = BARE_NAME.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path}: {found[0] if found else ''}"
    for line in ("pip install mltune", "pip install 'mltune[qlora]'", 'pip install -q "mltune==1"'):
        assert BARE_NAME.search(line)


@pytest.mark.parametrize("whose", WHOSE)
def test_the_gpu_job_asks_for_what_build_image_takes(
    whose: str, runner: Runner, clone: Path, new_project: Path, values: dict[str, str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """All of it but the engine: `--dry-run` settles the same plan and asks none."""
    folder = {"own": clone, "new": new_project}[whose]
    flow = read(folder / SMOKE)
    values |= {"vars.MLTUNE": str(pack_wheel(tmp_path / "w"))}
    job = flow["jobs"]["smoke-gpu-docker"]

    def planned(script: str) -> str:
        return runner.seeing(script).replace(" build-image ", " build-image --dry-run ")

    code, output = runner.run(folder, job, values, flow.get("env"), planned)
    assert code == 0, output
    assert ": gpu image mltune:repro-" in output
    assert "--build-arg LOCK=requirements-gpu.txt" in output
    command = re.search(r"# then runs: (.*)", output)
    assert command is not None
    assert command[1].startswith("mltune repro-check ")
    assert command[1].endswith("--set model.device=cuda")


REGISTRY = "registry.invalid/me/project"
PUSHED = f"{REGISTRY}@sha256:{'a' * 64}"
# The registry is out of reach: `build-image` plans what it would build, and this is the receipt.
PUSHING = """#!/bin/sh
{mltune} "$@" --dry-run || exit
mkdir image_output
echo '{{"repo_digests": ["{pushed}"]}}' > image_output/image.json
"""


@pytest.mark.parametrize(("kind", "name", "tag"), [
    ("tag", "v1.2.0", "v1.2.0"), ("branch", "main", "repro-01234567"),
])  # fmt: skip
def test_publishing_tells_the_digest(
    kind: str, name: str, tag: str, clone: Path, mltune_command: Path, tmp_path: Path
) -> None:
    job = read(clone / ".github/workflows/publish-image.yml")["jobs"]["publish"]
    (step,) = [step for step in job["steps"] if step.get("id") == "push"]
    (settings,) = [step for step in job["steps"] if step.get("name") == "Settings"]
    assert job["outputs"] == {"image": "${{ steps.push.outputs.image }}"}
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "mltune").write_text(PUSHING.format(mltune=mltune_command, pushed=PUSHED))
    (programs / "mltune").chmod(0o755)
    output = tmp_path / "output"

    def publish(
        index: str, registry: str = "registry.invalid", has_password: str = "true"
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*SHELL, settings["run"] + step["run"]], cwd=clone, capture_output=True, text=True,
            env={
                **os.environ, "PATH": f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin",
                "GITHUB_OUTPUT": str(output), "GITHUB_REF_NAME": name, "GITHUB_REF_TYPE": kind,
                "GITHUB_REPOSITORY": "Me/Project", "GITHUB_SHA": "0123456789" * 4,
                "TORCH_INDEX_URL": index, "IMAGE_REGISTRY": registry,
                "HAS_REGISTRY_PASSWORD": has_password,
            },
        )  # fmt: skip

    refused = publish("")
    assert refused.returncode == 2
    assert "::error::the repository variable TORCH_INDEX_URL is not set" in refused.stdout
    for registry in ("registry.invalid", "ghcr.io.example", "ghcr.io/x", "https://ghcr.io"):
        refused = publish("https://example.invalid/cpu", registry, "false")
        assert refused.returncode == 2
        assert "::error::the job's own token is for ghcr.io alone" in refused.stdout
    assert not output.exists()
    done = publish("https://example.invalid/cpu")
    assert done.returncode == 0, done.stderr
    assert f"cpu image {REGISTRY}:{tag}\n" in done.stdout
    assert "--build-arg PIP_EXTRA_INDEX_URL=https://example.invalid/cpu" in done.stdout
    assert output.read_text() == f"image={PUSHED}\n"


def test_the_jobs_own_token_goes_to_githubs_registry_alone(project: Path) -> None:
    flow = read(project / ".github/workflows/publish-image.yml")
    logins = [
        step["with"] for job in flow["jobs"].values() for step in job["steps"]
        if "login-action" in step.get("uses", "")
    ]  # fmt: skip
    assert len(logins) == 2
    for login in logins:
        assert login["registry"] == "${{ vars.IMAGE_REGISTRY }}"
        (password,) = EXPRESSION.findall(login["password"])
        guard, _, other = password.partition(" || ")
        assert guard == "vars.IMAGE_REGISTRY == 'ghcr.io' && secrets.GITHUB_TOKEN"
        assert other == "secrets.IMAGE_REGISTRY_PASSWORD"
    text = (project / ".github/workflows/publish-image.yml").read_text()
    assert text.count("GITHUB_TOKEN") == 2
    has_password = flow["jobs"]["publish"]["env"]["HAS_REGISTRY_PASSWORD"]
    assert has_password == "${{ secrets.IMAGE_REGISTRY_PASSWORD != '' }}"


TRAIN = """
import sys, torch
torch.manual_seed(1)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
"""


def test_the_action_checks_a_command(project: Path, mltune_command: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "my train.py").write_text(TRAIN)
    action = read(project / "action.yml")
    (check,) = [step for step in action["runs"]["steps"] if step.get("name") == "Check"]
    # Where the step before installs mltune; the command's Python is the one on PATH.
    programs = tmp_path / "temp" / "mltune" / "bin"
    programs.mkdir(parents=True)
    (programs / "mltune").symlink_to(mltune_command)
    (programs / "python").symlink_to(sys.executable)
    variables = {**os.environ, "RUNNER_TEMP": str(tmp_path / "temp"),
                 "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip

    def run(**given: str) -> tuple[int, str]:
        inputs = {name: one["default"] for name, one in action["inputs"].items()} | given
        named = filled(check["env"], {f"inputs.{name}": text for name, text in inputs.items()})
        ended = subprocess.run(
            [*SHELL, check["run"]], cwd=workspace, env=variables | named, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        return ended.returncode, ended.stdout

    code, output = run(command="python 'my train.py' \"{run}\"", vary="hash-seed\n\numask=0077\n")
    assert code == 0, output
    report = json.loads((workspace / "repro_output/report.json").read_text())
    assert report["variation"] == ["hash-seed=1", "umask=0077"]
    (workspace / "my train.py").write_text(TRAIN.replace("torch.manual_seed(1)", ""))
    code, output = run(command="python 'my train.py'")
    assert code == 1, output
    assert "different: 2 runs of python" in output
    # Nothing of an input is taken for a command of the shell.
    planted = "x; touch planted $(touch planted) `touch planted`"
    for name in ("config", "against", "runs", "vary"):
        code, output = run(**{name: planted})
        assert code == 2, output
    assert run(command=f"true {planted}")[0] == 125
    assert not (workspace / "planted").exists()
    # What cannot be read is wrong input, no verdict about the runs and no traceback.
    for command, problem in (
        ('python "t.py', "cannot be split as a shell would: No closing quotation"),
        ("python t.py \\", "cannot be split as a shell would: No escaped character"),
        ("  ", "is blank; leave it out, or name a program"),
        ("\n", "is blank; leave it out, or name a program"),
    ):
        assert run(command=command) == (2, f"::error::command: {problem}\n")


def test_the_action_installs_mltune_beside_the_jobs_python(
    project: Path, runner: Runner, clone: Path, values: dict[str, str], tmp_path: Path
) -> None:
    """The steps of the action one after the other, from its own commit to the verdict."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "train.py").write_text(TRAIN)
    action = read(project / "action.yml")
    given = {name: one["default"] for name, one in action["inputs"].items()}
    given |= {
        "command": f"{sys.executable} train.py",
        "torch-index": values["vars.TORCH_INDEX_URL"],
    }
    filled_in = {f"inputs.{name}": text for name, text in given.items()}
    filled_in["steps.python.outputs.python-path"] = str(runner.python / "bin" / "python")
    code, output = runner.run(
        workspace, {"steps": action["runs"]["steps"]}, filled_in,
        {"GITHUB_ACTION_PATH": str(clone)}, runner.seeing,
    )  # fmt: skip
    assert code == 0, output
    assert "Successfully installed mltune-" in output
    assert "reproducible: 2 runs of " in output
    assert (workspace / "repro_output" / "report.json").exists()
    # The job's own Python is what it was.
    assert not (runner.python / "bin" / "mltune").exists()


def test_the_action_needs_three_lines(project: Path) -> None:
    inputs = read(project / "action.yml")["inputs"]
    assert all("default" in given and given["description"] for given in inputs.values())
    page = (project / "docs" / "ci.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"(?s)```yaml\n(- uses: OWNER/mltune@COMMIT\n.*?)```", page)
    (step,) = yaml.safe_load(example)
    assert len(example.strip().splitlines()) == 3
    assert set(step["with"]) <= set(inputs)
    for name in inputs:
        assert f"`{name}`" in page
