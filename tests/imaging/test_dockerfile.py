"""The rendered Dockerfile, whole, and what is read out of a user's."""

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.errors import UsageError
from mltune_cli.imaging.dockerfile import (
    Dockerfile,
    parse_dockerfile,
    read_dockerfile,
    require_classic,
)
from mltune_cli.imaging.dockerfile_text import (
    CPU_BASE,
    CUDA_BASE,
    MLTUNE,
    DockerfileProject,
    render_dockerfile,
    render_dockerignore,
)
from mltune_cli.imaging.ignore_rules import parse_rules
from mltune_cli.imaging.locks import locked_packages

SNAPSHOTS = Path(__file__).parent.parent / "snapshots"
ISLES = DockerfileProject(
    title='The "isles" for $5',
    version="2.1",
    description="An adapter that knows the isles.",
    files=("recipe.yaml", "data", "configs/base/eval.yaml"),
    command=("mltune", "repro-check", "--config", "recipe.yaml"),
)
ADDRESS = re.compile(r"[a-z]+://|\.(org|com|io|net)/")


def assert_frozen(name: str, text: str) -> None:
    """Compare a text with its snapshot; `UPDATE_SNAPSHOTS=1` rewrites the snapshot instead."""
    path = SNAPSHOTS / name
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
        return
    frozen = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = difflib.unified_diff(frozen.splitlines(True), text.splitlines(True), name, "now")
    assert text == frozen, (
        f"{name} changed. If that is wanted, run UPDATE_SNAPSHOTS=1 pytest "
        f"tests/imaging/test_dockerfile.py and commit the snapshot:\n{''.join(lines)}"
    )


def read(text: str, **build_args: str) -> Dockerfile:
    return parse_dockerfile(text, "D", build_args)


def test_the_projects_own_files_are_those_rendered(project: Path) -> None:
    assert (project / "Dockerfile").read_text(encoding="utf-8") == render_dockerfile(MLTUNE)
    assert (project / ".dockerignore").read_text(encoding="utf-8") == render_dockerignore(MLTUNE)


def test_the_tool_finds_a_file_out_of_date(project: Path, tmp_path: Path) -> None:
    tool = project / "tools" / "write_dockerfile.py"
    subprocess.run([sys.executable, tool, "--check"], check=True)
    copy = tmp_path / "tools" / tool.name
    copy.parent.mkdir()
    copy.write_bytes(tool.read_bytes())
    stale = subprocess.run([sys.executable, copy, "--check"], capture_output=True, text=True)
    assert (stale.returncode, list(tmp_path.glob("Dockerfile"))) == (1, [])
    assert "Dockerfile, .dockerignore" in stale.stdout
    subprocess.run([sys.executable, copy], check=True)
    assert (tmp_path / "Dockerfile").read_bytes() == (project / "Dockerfile").read_bytes()


def test_the_goldens() -> None:
    """One file serves the CPU and the GPU: the variant is in two arguments."""
    assert_frozen("dockerfile-mltune.txt", render_dockerfile(MLTUNE))
    assert_frozen("dockerfile-project.txt", render_dockerfile(ISLES))
    assert_frozen("dockerignore-project.txt", render_dockerignore(ISLES))


@pytest.mark.parametrize("rendered", [MLTUNE, ISLES])
def test_both_builders_read_it(rendered: DockerfileProject) -> None:
    text = render_dockerfile(rendered)
    dockerfile = read(text)
    require_classic(dockerfile)
    assert dockerfile.images == (CUDA_BASE,)
    assert read(text, CUDA_BASE="a@sha256:1").base == "a@sha256:1"
    on_cpu = read(text, BASE=CPU_BASE, LOCK="requirements.txt")
    assert (on_cpu.images, on_cpu.base) == ((CPU_BASE,), CPU_BASE)
    sources = [source for copied in dockerfile.copied for source in copied.sources]
    assert sources == ["build/packages/", "build/mltune-*.whl", *rendered.files]
    assert ADDRESS.search(text.replace("org.opencontainers", "").replace("nvidia/cuda", "")) is None


def test_the_final_stage_runs_as_nobody_special_and_has_no_argument() -> None:
    dockerfile = read(render_dockerfile(ISLES))
    final = dockerfile.stages[-1]
    after = [i for i in dockerfile.lines.instructions if i.line > final.line]
    assert final.args == {}
    assert next(i.rest for i in reversed(after) if i.name == "USER") == "10001:10001"
    assert [i.rest for i in after if i.name == "ENTRYPOINT"] == ["[]"]
    copied = [i.words() for i in after if i.name == "COPY" and "from" not in i.flags]
    assert copied == [[file, f"/workspace/{file}"] for file in ISLES.files]


def test_the_cuda_base_is_of_the_locks_cuda(project: Path) -> None:
    lock = (project / "requirements-gpu.txt").read_text(encoding="utf-8")
    toolkit = locked_packages(lock, "3.12")["cuda-toolkit"]
    assert f":{'.'.join(toolkit.split('.')[:3])}-base-ubuntu24.04" in CUDA_BASE


def test_the_lowest_python_is_that_of_the_package(project: Path) -> None:
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    lowest = re.search(r'requires-python = ">=3\.(\d+)"', text)
    assert lowest is not None
    assert f"v >= (3, {lowest[1]})" in render_dockerfile(MLTUNE)


def test_the_ignore_file_lets_through_what_is_copied() -> None:
    rules = parse_rules(render_dockerignore(ISLES))
    sent = ["build/packages/requirements.txt", "build/packages/wheelhouse/a.whl", "recipe.yaml",
            "build/mltune-1-py3-none-any.whl", "data/train.jsonl", "data/deep/x",
            "configs/base/eval.yaml"]  # fmt: skip
    kept = ["README.md", ".git/config", "build/other", "data/.env", "data/deep/id_rsa", "runs/a",
            "data/a.pem", "configs/base/other.yaml", "data/__pycache__/a.pyc"]  # fmt: skip
    assert [name for name in sent if rules.ignores(name)] == []
    assert [name for name in kept if not rules.ignores(name)] == []


@pytest.mark.parametrize(
    "file",
    ["a b", "a*", "[a]", "../a", "/a", "a/../b", ".", "", "a//b", "a$b", "a\nb", 'a"', "-\\"],
)
def test_a_name_that_copy_would_misread_is_refused(file: str) -> None:
    with pytest.raises(UsageError, match="cannot be named in a Dockerfile"):
        render_dockerfile(DockerfileProject("t", "1", "d", files=(file,)))


def test_text_of_several_lines_cannot_add_an_instruction() -> None:
    with pytest.raises(UsageError, match="in one line"):
        render_dockerfile(DockerfileProject("t\nRUN rm -rf /", "1", "d"))


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1))
def test_a_title_comes_out_of_its_label_as_it_went_in(title: str) -> None:
    from mltune_cli.imaging.dockerfile_lines import expand

    dockerfile = read(render_dockerfile(DockerfileProject(title, "1", "d")))
    labels = [i.rest for i in dockerfile.lines.instructions if i.name == "LABEL"]
    label = next(text for text in labels if "image.title=" in text)
    quoted = label.split("image.title=")[1].split("      org.")[0].strip()
    assert expand(quoted, {}, "\\") == title


# Reading.


def test_arguments_and_references_are_resolved() -> None:
    dockerfile = read(
        "# a comment\n"
        "ARG VERSION=3.12\n"
        "ARG FLAVOUR\n"
        "ARG BASE=python:${VERSION}${FLAVOUR:+-$FLAVOUR}\n"
        "FROM ${BASE} AS Build\n"
        "ARG VERSION\n"
        "ARG WHERE=src/${VERSION}\n"
        "ENV PLACE=${WHERE}/in OTHER=\"two words\"\n"
        "COPY $PLACE/a.txt $OTHER /x/\n"
        "FROM build\n"
        "COPY --from=build /x /y\n"
        "COPY --from=other/image:1 /x /y\n"
        "COPY --chown=1:1 ${PLACE}/b '/z'\n",
        FLAVOUR="slim",
    )  # fmt: skip
    assert dockerfile.global_args == {
        "VERSION": "3.12",
        "FLAVOUR": None,
        "BASE": "python:3.12-slim",
    }
    assert [(s.name, s.base, s.is_base_stage, s.line) for s in dockerfile.stages] == [
        ("build", "python:3.12-slim", False, 5),
        (None, "build", True, 10),
    ]
    assert dockerfile.images == ("python:3.12-slim", "other/image:1")
    assert dockerfile.base == "python:3.12-slim"
    assert dockerfile.stages[0].args == {"VERSION": None, "WHERE": "src/3.12"}
    assert dockerfile.args == {"VERSION", "FLAVOUR", "BASE", "WHERE"}
    assert [(c.line, c.sources) for c in dockerfile.copied] == [
        (9, ("src/3.12/in/a.txt", "two words")),
        (13, ("src/3.12/in/b",)),
    ]


def test_the_forms_of_copy() -> None:
    dockerfile = read(
        "FROM scratch\n"
        'COPY ["a file", "b", "/"]\n'
        "copy   a \\\n"
        "  # a comment between the lines\n"
        "\n"
        "  b \\  \n"
        "  /there/\n"
        "ADD --chown=1 archive.tar.gz /x\n"
        "ADD https://host/file git@host:x.git /y\n"
        "COPY [odd /z\n"
    )
    assert [(c.line, c.instruction, c.sources) for c in dockerfile.copied] == [
        (2, "COPY", ("a file", "b")),
        (3, "COPY", ("a", "b")),
        (8, "ADD", ("archive.tar.gz",)),
        (10, "COPY", ("[odd",)),
    ]
    assert (dockerfile.images, dockerfile.base) == ((), "scratch")


def test_another_escape_character() -> None:
    dockerfile = read("# escape=`\nFROM a\nCOPY x `\n  y\\z /\nRUN echo `\n a\n")
    assert [c.sources for c in dockerfile.copied] == [("x", "y\\z")]
    assert [i.line for i in dockerfile.lines.instructions] == [2, 3, 5]


def test_a_heredoc_is_no_instruction() -> None:
    dockerfile = read(
        "FROM a\nRUN <<EOF cat <<-'TAB'\nFRUM nothing\nEOF\n\tCOPY x y\n\tTAB\nCOPY <<F z /\nF\n"
        "RUN echo $((1<<3)) <<<word\n"
    )
    assert [i.name for i in dockerfile.lines.instructions] == ["FROM", "RUN", "COPY", "RUN"]
    assert [c.sources for c in dockerfile.copied] == [("z",)]
    assert [i.heredocs for i in dockerfile.lines.instructions] == [False, True, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "D:1: has no FROM"),
        ("# only\nARG A=1\n", "D:1: has no FROM"),
        ("\nFRUM a\n", "D:2: there is no instruction FRUM; is it FROM?"),
        ("FROM a\nXYZZY b\n", "D:2: there is no instruction XYZZY"),
        ("RUN a\nFROM b\n", "D:1: RUN stands before the first FROM"),
        ("FROM a\nRUN\n", "D:2: RUN needs an argument"),
        ("FROM a b\n", "D:1: FROM is followed by"),
        ("FROM a IS b\n", "D:1: FROM is followed by"),
        ("FROM $A\n", "D:1: FROM $A: A has no value; give it one with --build-arg A=..."),
        ("ARG A\nFROM ${A}\n", "--build-arg A="),
        ("ARG A=\nFROM ${A}\n", "D:2: FROM ${A}: names no image"),
        ("FROM a AS x\nFROM b AS X\n", "D:2: there is a stage x already"),
        ("FROM a\nCOPY b\n", "D:2: COPY needs a source and a destination"),
        ("FROM a\nCOPY $B /\n", "D:2: COPY $B: B has no value"),
        ("FROM a\nCOPY ${B%x} /\n", "D:2: COPY: ${B%x} is no variable that can be read"),
        ("FROM a\nCOPY 'b /\n", "D:2: COPY: 'b lacks a closing '"),
        ("FROM a\nRUN <<EOF\nx\n", "D:2: the heredoc has no line EOF"),
        ("# escape=x\nFROM a\n", "D:1: the escape character"),
    ],
)
def test_what_the_builder_would_refuse_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# syntax=docker/dockerfile:1\nFROM a\n", "D:1: the classic builder knows no # syntax"),
        ("FROM a\nRUN --mount=type=cache,target=/x y\n", "D:2: .* no RUN --mount"),
        ("FROM a\nRUN --network=none y\n", "D:2: .* no RUN --network"),
        ("FROM a\nCOPY --chmod=755 a b\n", "D:2: .* no COPY --chmod"),
        ("FROM a\nCOPY --link --from=x a b\n", "D:2: .* no COPY --link"),
        ("FROM a\nADD --checksum=sha256:1 a b\n", "D:2: .* no ADD --checksum"),
        ("FROM a\n\nRUN <<EOF\nEOF\n", "D:3: .* no heredoc"),
    ],
)
def test_what_the_classic_builder_lacks(text: str, message: str) -> None:
    dockerfile = read(text)
    with pytest.raises(UsageError, match=message) as caught:
        require_classic(dockerfile)
    assert "--builder buildx" in caught.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none: there is no such Dockerfile"):
        read_dockerfile(tmp_path / "none")
    with pytest.raises(UsageError, match="Is a directory"):
        read_dockerfile(tmp_path)
    (tmp_path / "D").write_bytes(b"FROM a\xff")
    with pytest.raises(UsageError, match="it is not UTF-8"):
        read_dockerfile(tmp_path / "D")
    (tmp_path / "D").write_bytes(b"\xef\xbb\xbfFROM a\r\nCOPY x \\\r\n y /\r\n")
    assert read_dockerfile(tmp_path / "D").copied[0].sources == ("x", "y")


LINES = st.sampled_from(
    ["FROM a", "FROM b AS c", "ARG X=1", "ARG X", "COPY $X /", "COPY x y \\", "ENV A $X",
     "ENV A=$X", "RUN <<E", "E", "# c", "", "RUN \\", 'COPY ["a"', "COPY --from=c a b",
     "ADD a b c", "EXPOSE 1"]
)  # fmt: skip


@given(st.lists(LINES | st.text(max_size=20), max_size=12))
def test_any_text_is_read_or_refused_in_one_sentence(lines: list[str]) -> None:
    message, dockerfile = "", None
    try:
        dockerfile = read("\n".join(lines))
    except UsageError as error:
        message = error.message
    if dockerfile is None:
        assert re.match(r"D:\d+: ", message)
    else:
        assert dockerfile.stages
        assert dockerfile.base


def test_no_heavy_package_is_loaded() -> None:
    program = (
        "import sys, mltune_cli.imaging.context, mltune_cli.imaging.packed_wheel\n"
        "import mltune_cli.imaging.dockerfile_text\n"
        "sys.exit(bool({'jinja2', 'docker', 'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
