"""`mltune init`: what it writes runs, and nothing that was there is lost."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Mltune = Callable[..., Any]
WORKFLOW = ".github/workflows/smoke-repro.yml"
WRITTEN = {
    ".dockerignore", ".gitignore", "Dockerfile", "recipe.yaml", "repro_dataset/train.jsonl",
    "repro_dataset/val.jsonl", "requirements-gpu.txt", "requirements.txt", "run_repro.sh",
    "train.py",
}  # fmt: skip
# What the script that mltune grew out of was called with.
ORIGINAL = (
    "--model_name_or_path", "mltune/tiny", "--train_file", "repro_dataset/train.jsonl",
    "--output_dir", "my run", "--max_steps", "2", "--per_device_train_batch_size", "2",
    "--seed", "42", "--logging_strategy", "steps",
)  # fmt: skip
QUICK = ("--set", "train.max_steps=2", "--set", "train.warmup_steps=0")


def files_below(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".git/" not in f"{path}")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_refused(result: Any, sentence: str) -> None:
    """One sentence on stderr, nothing on stdout, and the code of wrong input."""
    assert result.code == 2, result.stderr
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def in_shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line as somebody types it who has this environment's programs on PATH."""
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                 "HF_HUB_OFFLINE": "1", "MLTUNE_CACHE": str(folder / "cache")}  # fmt: skip
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=variables, capture_output=True, text=True
    )


@pytest.mark.parametrize("flags", [(), ("--gpu", "--ci", "none")])
def test_what_it_writes_runs(mltune: Mltune, tmp_path: Path, flags: tuple[str, ...]) -> None:
    result = mltune("init", "my project", *flags, cwd=tmp_path)
    assert result.code == 0
    # Installed from a folder, it cannot say where a runner gets it from.
    assert ("needs the repository variable MLTUNE" in result.stderr) is (not flags)
    project = tmp_path / "my project"
    wanted = WRITTEN if flags else WRITTEN | {WORKFLOW}
    assert set(files_below(project)) == wanted
    for name in wanted:
        assert f" {Path(name).name}: " in result.stdout
    # The command that it names next, word for word, in a shell.
    following = result.stdout.strip().splitlines()[-1]
    assert following == "next: cd 'my project' && mltune repro-check --config recipe.yaml"
    checked = in_shell(following.removeprefix("next: "), tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "reproducible: 2 runs of recipe are equal bit for bit over 20 steps" in checked.stdout
    # What the check leaves is ignored by git; what was written is not.
    subprocess.run(["git", "init", "--quiet", project], check=True)
    seen = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"],
        cwd=project, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(seen.stdout.splitlines()) == wanted
    # No place of this machine, and no address of an index, is in what a project commits.
    for name in wanted:
        content = (project / name).read_bytes()
        assert str(tmp_path).encode() not in content
        assert not re.search(rb"https?://(?!HOST/OWNER/)", content), name


def test_gpu_is_a_matter_of_the_recipe(mltune: Mltune, tmp_path: Path) -> None:
    for name, flags in (("cpu", ()), ("gpu", ("--gpu",))):
        assert mltune("init", name, *flags, cwd=tmp_path).code == 0
        shown = mltune("train", "--config", f"{name}/recipe.yaml", "--dry-run", cwd=tmp_path)
        device = re.search(r'(?m)^  device: "(\w+)" +# (\S+)', shown.stdout)
        assert device is not None
        assert device[1] == {"cpu": "cpu", "gpu": "auto"}[name]
        assert device[2].startswith(f"{name}/recipe.yaml:")  # not a default that may move
    different = [
        path for path, content in files_below(tmp_path / "cpu").items()
        if content.replace(b"cpu", b"gpu")
        != (tmp_path / "gpu" / path).read_bytes().replace(b"cpu", b"gpu")
    ]  # fmt: skip
    assert different == ["recipe.yaml"]


def test_the_image_of_a_project_holds_its_recipe_and_rows(mltune: Mltune, tmp_path: Path) -> None:
    assert mltune("init", cwd=tmp_path).code == 0
    for flags, lock in (((), "requirements.txt"), (("--gpu",), "requirements-gpu.txt")):
        shown = mltune("build-image", "--dry-run", *flags, cwd=tmp_path)
        assert shown.code == 0, shown.stderr
        assert f"--build-arg LOCK={lock}" in shown.stdout
        for name in ("recipe.yaml", "repro_dataset/train.jsonl", f"build/packages/{lock}"):
            assert re.search(rf"(?m)^# +[\d,]+ {re.escape(name)}$", shown.stdout), name
        assert 'CMD ["mltune", "repro-check", "--config", "recipe.yaml"]' in shown.stdout
    # It is the project's own lock: one that pins another set of packages is what is sent.
    lock = tmp_path / "requirements.txt"
    lock.write_text("docker==7.1.0 --hash=sha256:" + "0" * 64 + "\n")
    shown = mltune("build-image", "--dry-run", cwd=tmp_path)
    assert re.search(rf"(?m)^# +{lock.stat().st_size} build/packages/requirements.txt$",
                     shown.stdout)  # fmt: skip


@pytest.fixture
def run(mltune: Mltune, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program in a new project, with the environment's programs on PATH."""
    assert mltune("init", cwd=tmp_path).code == 0
    programs = str(Path(sys.executable).parent)
    variables = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}",
                 "MLTUNE_CACHE": str(tmp_path / "cache")}  # fmt: skip

    def start(*command: str, cwd: Path = tmp_path, **more: str) -> Any:
        return subprocess.run(
            command, cwd=cwd, env=variables | more, capture_output=True, text=True
        )

    return start


def test_pipelines_of_the_original_script_go_on(run: Any, tmp_path: Path) -> None:
    trained = run("python", "train.py", *ORIGINAL)
    assert trained.returncode == 0, trained.stderr
    log = (tmp_path / "my run" / "training_log.jsonl").read_text()
    assert len(log.splitlines()) == 2
    manifest = (tmp_path / "my run" / "manifest.json").read_text()
    assert "--per_device_train_batch_size" in manifest
    # Who names rows of his own gets nothing of recipe.yaml: its held-out rows are not his.
    assert str(tmp_path / "repro_dataset" / "val.jsonl") not in manifest
    wrong = run("python", "train.py", "--no_such_flag")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_without_rows_of_its_own_train_py_trains_the_recipe(run: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shown = run(str(tmp_path / "train.py"), "--max_steps", "7", "--dry-run", cwd=elsewhere)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"max_steps: 7 +# --max_steps", shown.stdout)
    assert re.search(r"seed: 20 +# .*/recipe.yaml:\d+", shown.stdout)
    other = tmp_path / "other.yaml"
    other.write_text((tmp_path / "recipe.yaml").read_text().replace("seed: 20", "seed: 21"))
    for flags in (("--config", "other.yaml"), ("--config=other.yaml",)):
        shown = run("python", "train.py", *flags, "--dry-run")
        assert re.search(r"seed: 21 +# other.yaml:\d+", shown.stdout), shown.stderr


def test_run_repro_hands_over_every_word(run: Any, tmp_path: Path) -> None:
    checked = run("./run_repro.sh", *QUICK, "--output", "my output")
    assert checked.returncode == 0, checked.stderr
    assert "reproducible: 2 runs of recipe" in checked.stdout
    assert (tmp_path / "my output" / "report.json").is_file()
    # A recipe or a command that is named takes the place of recipe.yaml.
    wrong = run("./run_repro.sh", "--config", "none.yaml")
    assert wrong.returncode == 2
    assert "none.yaml" in wrong.stderr
    failed = run("./run_repro.sh", "--", "python", "-c", "raise SystemExit('it broke')")
    assert failed.returncode == 125
    assert "it broke" in failed.stdout + failed.stderr


def test_without_mltune_the_scripts_say_so(run: Any, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    absent = run(str(bare / "bin" / "python"), "train.py", PATH="/usr/bin:/bin")
    assert absent.returncode == 125
    assert "mltune is not installed for" in absent.stderr
    absent = run("/bin/bash", "run_repro.sh", PATH="/usr/bin:/bin")
    assert absent.returncode == 125
    assert "mltune is not installed, or not on PATH" in absent.stderr


def test_run_repro_is_clean_shell(run: Any, tmp_path: Path) -> None:
    checked = run("shellcheck", "run_repro.sh")
    assert (checked.returncode, checked.stdout) == (0, "")
    script = tmp_path / "run_repro.sh"
    script.write_text(script.read_text().replace('"$@"', "$@"))
    assert "SC2068" in run("shellcheck", "run_repro.sh").stdout  # it does find faults


def test_a_repository_with_files_keeps_them(mltune: Mltune, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    own = {"train.py": b"print('mine')\n", "Dockerfile": b"FROM mine\n", "notes.md": b"notes"}
    for name, content in own.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".gitignore").write_bytes(b"/runs/\nsecrets.txt")
    before = files_below(tmp_path)
    refused = mltune("init", cwd=tmp_path)
    assert_refused(refused, "has Dockerfile, train.py already, and with other content; nothing was")
    assert "--force" in refused.stderr
    assert files_below(tmp_path) == before

    forced = mltune("init", "--force", cwd=tmp_path)
    assert forced.code == 0
    after = files_below(tmp_path)
    kept = {"train.py.before-mltune", "Dockerfile.before-mltune"}
    assert set(after) == WRITTEN | {WORKFLOW, "notes.md"} | kept
    for name in ("train.py", "Dockerfile"):
        assert after[f"{name}.before-mltune"] == own[name]
        assert after[name] != own[name]
        assert f"{name}: " in forced.stdout
        assert f"replaced; the old one is {name}.before-mltune" in forced.stdout
    # A list is added to: what was in it stays as it was, and comes first.
    assert after[".gitignore"].startswith(b"/runs/\nsecrets.txt\n")
    assert after[".gitignore"].count(b"/runs/") == 1
    assert b"/repro_output/\n" in after[".gitignore"]
    assert "added to: 4 lines" in forced.stdout
    assert after["notes.md"] == b"notes"


def test_a_folder_that_looks_like_an_option_is_one_that_can_be_entered(
    mltune: Mltune, tmp_path: Path
) -> None:
    result = mltune("init", "--ci", "none", "--", "-y", cwd=tmp_path)
    assert result.code == 0, result.stderr
    following = result.stdout.strip().splitlines()[-1].removeprefix("next: ")
    way, _, check = following.partition(" && ")
    assert check == "mltune repro-check --config recipe.yaml"
    entered = in_shell(f"{way} && pwd", tmp_path)
    assert (entered.stdout, entered.stderr) == (f"{(tmp_path / '-y').resolve()}\n", "")


def test_an_empty_name_is_no_folder(mltune: Mltune, tmp_path: Path) -> None:
    assert_refused(mltune("init", "", cwd=tmp_path), "DIR is empty; name a folder, or leave it out")
    assert list(tmp_path.iterdir()) == []


def test_a_second_time_changes_nothing(mltune: Mltune, tmp_path: Path) -> None:
    assert mltune("init", cwd=tmp_path).code == 0

    def written() -> dict[Path, tuple[int, int, int]]:
        # Not the time of reading: the second command reads, and the kernel may note it.
        found = {path: path.stat() for path in tmp_path.rglob("*")}
        return {path: (s.st_ino, s.st_mtime_ns, s.st_size) for path, s in found.items()}

    before = written()
    again = mltune("init", cwd=tmp_path)
    assert again.code == 0
    assert written() == before
    assert "unchanged: . (0 of 11 files)" in again.stdout
    assert again.stdout.count(", unchanged\n") == 11
    # A second replacement gets a name of its own.
    for number in (1, 2):
        (tmp_path / "train.py").write_text(f"# version {number}\n")
        assert mltune("init", "--force", cwd=tmp_path).code == 0
    assert (tmp_path / "train.py.before-mltune").read_text() == "# version 1\n"
    assert (tmp_path / "train.py.before-mltune-2").read_text() == "# version 2\n"


def test_below_the_top_of_a_repository_it_says_where_workflows_belong(
    mltune: Mltune, tmp_path: Path
) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    result = mltune("init", "models/one", cwd=tmp_path)
    assert result.code == 0
    assert f"at the top of a repository alone, which is {tmp_path};" in result.stderr
    assert mltune("init", "models/two", "--ci", "none", cwd=tmp_path).stderr == ""


def test_an_unknown_ci_is_refused(mltune: Mltune, tmp_path: Path) -> None:
    refused = mltune("init", "project", "--ci", "gitlab", cwd=tmp_path)
    assert_refused(refused, "--ci gitlab: must be github or none")
    assert not (tmp_path / "project").exists()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that not even root can write into."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("no folder can be made unwritable here")
    yield folder
    if mounted.returncode == 0:
        subprocess.run(["umount", folder], check=True)
    folder.chmod(0o700)


def test_a_folder_that_cannot_be_written(mltune: Mltune, read_only: Path, tmp_path: Path) -> None:
    for target in (read_only, read_only / "inside" / "deeper"):
        assert_refused(mltune("init", target, cwd=tmp_path), "cannot be written: ")
    assert list(read_only.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    assert_refused(mltune("init", "file", cwd=tmp_path), "file: is a file, and a project needs")
    assert_refused(mltune("init", "file/inside", cwd=tmp_path), "file/inside: cannot be written")
    assert (tmp_path / "file").read_text() == "mine"
    assert_refused(mltune("init", "n" * 300, cwd=tmp_path), "cannot be written: File name too long")


def test_a_full_disk_leaves_what_was_there(
    mltune: Mltune, disk_of: Callable[[int], Path], tmp_path: Path
) -> None:
    disk = disk_of(64)
    (disk / ".gitignore").write_text("mine\n")
    (disk / "train.py").write_text("mine\n")
    result = mltune("init", disk, "--force", cwd=tmp_path)
    assert result.code == 125  # the machine's fault, not the input's
    assert "cannot be written: No space left on device" in result.stderr
    assert files_below(disk) == {".gitignore": b"mine\n", "train.py": b"mine\n"}
    assert sorted(path.name for path in disk.iterdir()) == [".gitignore", "train.py"]


def test_links_that_lead_elsewhere_are_not_followed(mltune: Mltune, tmp_path: Path) -> None:
    outside, project = tmp_path / "outside", tmp_path / "project"
    outside.mkdir()
    (outside / "train.py").write_text("mine")
    project.mkdir()
    for name, target in (
        ("train.py", outside / "train.py"),
        ("repro_dataset", outside),
        (".github", outside),
        ("Dockerfile", outside / "missing"),
    ):
        link = project / name
        link.symlink_to(target)
        refused = mltune("init", project, "--force", cwd=tmp_path)
        assert_refused(refused, f"a symbolic link leads out of {project}")
        link.unlink()
    assert files_below(outside) == {"train.py": b"mine"}
    for name, target, sentence in (
        ("recipe.yaml", "nowhere", "is a symbolic link to nothing"),
        ("train.py", "train.py", "symbolic links"),
    ):
        link = project / name
        link.symlink_to(target)
        assert_refused(mltune("init", project, "--force", cwd=tmp_path), sentence)
        link.unlink()
    assert list(project.iterdir()) == []


def test_a_link_within_the_project_stays_one(mltune: Mltune, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").write_text("mine")
    (tmp_path / "train.py").symlink_to("scripts/train.py")
    assert mltune("init", "--force", cwd=tmp_path).code == 0
    assert (tmp_path / "train.py").is_symlink()
    assert "mltune train" in (tmp_path / "scripts" / "train.py").read_text()
    assert (tmp_path / "scripts" / "train.py.before-mltune").read_text() == "mine"


def test_what_is_no_file_is_left_alone(mltune: Mltune, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").mkdir()
    refused = mltune("init", "--force", cwd=tmp_path)
    assert_refused(refused, "recipe.yaml: is no ordinary file; move it away")
    (tmp_path / "recipe.yaml").rmdir()
    os.mkfifo(tmp_path / "train.py")
    assert_refused(mltune("init", "--force", cwd=tmp_path), "train.py: is no ordinary file")
    (tmp_path / "train.py").unlink()
    (tmp_path / "repro_dataset").write_text("a file")
    assert_refused(mltune("init", "--force", cwd=tmp_path), "repro_dataset: is no folder")
    assert files_below(tmp_path) == {"repro_dataset": b"a file"}


def test_rights_follow_the_umask_and_the_file_that_was_there(
    mltune: Mltune, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text("mine")
    (tmp_path / "train.py").chmod(0o600)
    (tmp_path / ".gitignore").write_text("mine\n")
    (tmp_path / ".gitignore").chmod(0o640)
    assert mltune("init", "--force", cwd=tmp_path).code == 0
    mask = os.umask(0)
    os.umask(mask)
    for name, mode in (
        ("run_repro.sh", 0o777 & ~mask), ("recipe.yaml", 0o666 & ~mask), ("train.py", 0o700),
        ("train.py.before-mltune", 0o600), (".gitignore", 0o640),
    ):  # fmt: skip
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode, name
