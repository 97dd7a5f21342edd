"""What runs in an image, how it is shut in, and every way in which it ends: on real engines."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.errors import ExitCode

New = Callable[[Any], Any]


def test_the_container_is_shut_in(engine: Any, tiny_base: str, case: New) -> None:
    one = case(engine).script(
        tiny_base,
        "exec 2>&1; id -u; id -g; grep -E 'Cap(Eff|Prm|Bnd)|NoNew' /proc/self/status",
        "tail -n +3 /proc/net/dev | cut -d: -f1",
        "touch /x; touch /repro_output/mine && touch /tmp/scratch && echo written",
        "echo home $HOME $MLTUNE_IMAGE_DIGEST",
    )
    done = one.build()
    assert done.returncode == ExitCode.OK, done.stderr
    said = [line[12:] for line in done.stderr.splitlines() if line.startswith("[container] ")]
    user, group = ("10001", "10001") if os.getuid() == 0 else (os.getuid(), os.getgid())
    assert said[:2] == [str(user), str(group)]
    status = dict(line.split(":\t") for line in said if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    # The kernel may list tunnels that lead nowhere; no interface with an address is there.
    assert [line for line in said if line.strip().startswith("eth")] == []
    assert any("Read-only file system" in line for line in said)
    assert "written" in said
    assert f"home /tmp {one.receipt['image_id']}" in said
    assert one.receipt["run"]["artifacts"] == ["mine"]


def test_with_network_there_is_a_way_out(engine: Any, tiny_base: str, case: New) -> None:
    one = case(engine).script(tiny_base, "cat /proc/net/dev")
    done = one.build("--network")
    assert done.returncode == ExitCode.OK
    assert "eth0:" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, whose container is another user's")
def test_artifacts_are_given_back_and_nothing_else(
    engine: Any, tiny_base: str, case: New, tmp_path: Path
) -> None:
    """A link planted among the artifacts does not give away what it points to."""
    precious, folder = tmp_path / "precious", tmp_path / "folder"
    precious.write_text("mine")
    folder.mkdir()
    (folder / "inner").write_text("mine")
    for path in (precious, folder, folder / "inner"):
        os.chown(path, 4321, 4321)
    one = case(engine).script(
        tiny_base,
        f"cd /repro_output; mkdir -p deep/er; echo 1 >deep/er/file; ln -s {precious} link",
        f"ln -s {folder} deep/folder; chmod 000 deep/er; mkfifo pipe",
    )
    done = one.build(SUDO_UID="5001", SUDO_GID="5002")
    assert done.returncode == ExitCode.OK, done.stderr
    for path in (precious, folder, folder / "inner"):
        assert (path.stat().st_uid, path.stat().st_gid) == (4321, 4321)
    written = [one.artifacts, *one.artifacts.rglob("*")]
    assert len(written) == 7
    for path in written:
        assert (path.lstat().st_uid, path.lstat().st_gid) == (5001, 5002), path
    # What the links lead to is no artifact.
    assert one.receipt["run"]["artifacts"] == ["deep/er/file"]


def test_a_link_to_a_run_of_the_host_is_no_run_of_the_container(
    engine: Any, tiny_base: str, case: New, finished_run: Path
) -> None:
    """It would be compared with itself."""
    one = case(engine).script(tiny_base, f"ln -s {finished_run} /repro_output/run-1")
    done = one.build("--against", str(finished_run))
    assert done.returncode == ExitCode.NO_VERDICT
    assert one.receipt["reason"] == "the container left no training run to compare"


@pytest.mark.parametrize(
    ("line", "flags", "said"),
    [
        ("exit 126", (), "may not be executed"),
        ("exit 127", (), "has no such program"),
        ("exit 3", (), "the container's command ended with 3: told last"),
        ("exit 1", (), "the container's command ended with 1: told last"),
        ("kill -9 $$", (), "the container was killed from outside"),
        ("sleep 60", ("--timeout", "2"), "it took longer than --timeout 2 seconds"),
        ("head -c 90m /dev/zero | tail", ("--memory", "32m"), "needs more than 0.0312 GiB of"),
    ],
)
def test_a_run_that_fails_leaves_its_artifacts_and_a_receipt(
    engine: Any, tiny_base: str, case: New, line: str, flags: tuple[str, ...], said: str,
    left_of_ours: Any,
) -> None:  # fmt: skip
    one = case(engine).script(tiny_base, "echo kept >/repro_output/kept; echo told last", line)
    done = one.build(*flags)
    assert done.returncode == ExitCode.NO_VERDICT, done.stderr
    receipt = one.receipt
    assert receipt["exit_code"] == ExitCode.NO_VERDICT
    assert said in receipt["reason"]
    assert said in done.stdout
    assert receipt["run"]["artifacts"] == ["kept"]
    assert (one.artifacts / "kept").read_text() == "kept\n"
    assert receipt["run"]["is_timed_out"] is (line == "sleep 60")
    assert receipt["run"]["is_out_of_memory"] is ("--memory" in flags)
    assert ("--memory" in receipt["reason"]) is ("--memory" in flags)
    assert one.left(left_of_ours) == []


# What the kernel takes for a program of another processor: the head of an ELF file for s390.
FOREIGN = "\x7fELF\x02\x02\x01" + 9 * "\0" + "\0\x02\0\x16" + 44 * "\0"


@pytest.mark.parametrize(
    ("command", "mode", "said"),
    [
        ('["no-such-program"]', 0o755, "has no such program"),
        ('["/program"]', 0o644, "may not be executed"),
        ('["/tmp"]', 0o755, "may not be executed"),
    ],
)
@pytest.mark.parametrize("instruction", ["CMD", "ENTRYPOINT"])
def test_a_command_that_cannot_start_is_explained(
    engine: Any, tiny_base: str, case: New, instruction: str, command: str, mode: int, said: str
) -> None:
    one = case(engine).write(
        tiny_base, "COPY program /program", f"{instruction} {command}", program=FOREIGN
    )
    (one.folder / "program").chmod(mode)
    done = one.build()
    assert done.returncode == ExitCode.NO_VERDICT, done.stderr
    assert said in one.receipt["reason"]


@pytest.mark.parametrize("instruction", ["CMD", "ENTRYPOINT"])
def test_an_mltune_of_another_processor_is_no_verdict(
    engine: Any, tiny_base: str, case: New, instruction: str
) -> None:
    """It ends with 1, which of an mltune that runs means "not reproducible".

    All of such an image is foreign: a shell would read the program as a script.
    """
    one = case(engine).write(
        "scratch",
        "COPY mltune /usr/bin/mltune",
        "COPY mltune /bin/sh",
        f'{instruction} ["mltune", "repro-check"]',
        mltune=FOREIGN,
    )
    done = one.build()
    assert done.returncode == ExitCode.NO_VERDICT
    assert "mltune in the image is for another processor" in one.receipt["reason"]
    assert one.receipt["run"]["exit_code"] == 1


def test_a_build_step_of_another_processor_is_explained(
    engine: Any, tiny_base: str, case: New
) -> None:
    one = case(engine).write(
        tiny_base, "COPY program /program", 'RUN ["/program"]', program=FOREIGN
    )
    done = one.build("--no-run")
    assert done.returncode == ExitCode.NO_VERDICT
    assert "for another processor" in done.stderr.splitlines()[-1]


LOGS = "cd repro_output && touch report.json training_log.jsonl last_loss.txt"


def mltune_that(*lines: str) -> str:
    return "".join(f"{line}\n" for line in ("#!/bin/sh", *lines))


@pytest.mark.parametrize(
    ("script", "command", "code", "said"),
    [
        ("exit 1", ["CMD mltune x"], 125, "ended with 1"),
        ("exit 1", ['CMD ["mltune", "train"]'], 1, "the runs in the container differ"),
        ("exit 1", ['ENTRYPOINT ["mltune"]', 'CMD ["train"]'], 1, "differ"),
        ("exit 1", ['ENTRYPOINT ["env"]', 'CMD ["mltune", "train"]'], 1, "differ"),
        ("exit 0", ['CMD ["mltune", "repro-check"]'], 125, "without leaving report.json, "),
        ("exit 0", ['ENTRYPOINT ["mltune"]', 'CMD ["repro-check"]'], 125, "without leaving"),
        ("exit 0", ['CMD ["mltune", "repro-check", "--output", "x"]'], 0, None),
        ("exit 0", ['CMD ["mltune", "repro-check", "--output=x"]'], 0, None),
        ("exit 2", ['CMD ["mltune", "repro-check"]'], 125, "ended with 2: no such recipe"),
        (LOGS, ['CMD ["mltune", "repro-check"]'], 125, "without leaving adapter"),
        (f"{LOGS} && mkdir adapter", ['CMD ["mltune", "repro-check"]'], 0, None),
        (f"{LOGS} && mkdir model", ['CMD ["mltune", "repro-check"]'], 0, None),
    ],
)
def test_the_verdict_of_an_mltune_is_passed_on(
    engine: Any, tiny_base: str, case: New, script: str, command: list[str], code: int,
    said: str | None,
) -> None:  # fmt: skip
    text = mltune_that("echo no such recipe", script)
    one = case(engine).write(tiny_base, "COPY mltune /usr/bin/mltune", *command, mltune=text)
    done = one.build()
    assert done.returncode == code, (done.stdout, done.stderr)
    assert one.receipt["exit_code"] == code
    assert said is None or said in one.receipt["reason"]


def test_an_image_without_a_command_says_so(engine: Any, case: New, tiny_base: str) -> None:
    one = case(engine)
    one.write("scratch", "COPY file /file", file="x")
    done = one.build()
    assert done.returncode == ExitCode.NO_VERDICT
    assert "has no command of its own; add a CMD" in one.receipt["reason"]
    done = one.build("--", "/file")
    assert done.returncode == ExitCode.NO_VERDICT
    assert "has no such program, or none for this processor" in one.receipt["reason"]


def test_what_the_container_prints_is_shown_as_it_is(
    engine: Any, tiny_base: str, case: New
) -> None:
    lines = ["[bold]x[/bold] [/]", ":id: 1:100:2 :smile:", "\\[red]", "{0} %s", "mltune: error"]
    one = case(engine).write(
        tiny_base, "COPY lines /lines", 'CMD ["cat", "/lines"]',
        lines="\n".join(lines) + "\n\nno end",
    )  # fmt: skip
    done = one.build()
    assert done.returncode == ExitCode.OK
    shown = [line[12:] for line in done.stderr.splitlines() if line.startswith("[container]")]
    assert shown == [*lines, "", "no end"]


def test_bytes_that_are_no_text_are_shown(engine: Any, tiny_base: str, case: New) -> None:
    one = case(engine).script(
        tiny_base,
        r"printf 'a\377b\r\n\033[31mred\033[0m\n'; echo err >&2; cd repro_output",
        r"touch $(printf 'na\377me'); exit 3",
    )
    done = one.build("--json")
    assert done.returncode == ExitCode.NO_VERDICT, done.stderr
    assert "[container] a\ufffdb" in done.stderr
    assert "\x1b[31mred\x1b[0m" in done.stderr
    assert one.receipt["run"]["artifacts"] == ["na\ufffdme"]


def test_a_line_without_end_takes_neither_memory_nor_time(
    engine: Any, tiny_base: str, case: New
) -> None:
    one = case(engine).script(tiny_base, "head -c 40000000 /dev/zero | tr '\\0' x; exit 3")
    done = one.build()
    assert done.returncode == ExitCode.NO_VERDICT
    assert done.stderr.count("x") >= 40_000_000
    assert len(one.receipt["reason"]) < 2000
    assert one.receipt["run"]["seconds"] < 30


def test_many_lines_arrive_in_order(engine: Any, tiny_base: str, case: New) -> None:
    one = case(engine).script(tiny_base, "seq 1 100000")
    done = one.build()
    assert done.returncode == ExitCode.OK
    shown = [line for line in done.stderr.splitlines() if line.startswith("[container] ")]
    assert shown == [f"[container] {number}" for number in range(1, 100001)]
    assert one.receipt["run"]["seconds"] < 60


def test_a_build_step_may_print_what_a_builder_prints(
    engine: Any, tiny_base: str, case: New, left_of_ours: Any
) -> None:
    one = case(engine).write(
        tiny_base, "COPY words /words", "RUN cat /words", 'CMD ["true"]',
        words="Step 1/2 : FROM x AS y\n ---> 0123456789ab\nStep 2/2 : FROM z\n ---> Using cache\n"
        "Successfully built 0123456789ab\n[bold]:id:\n",
    )  # fmt: skip
    done = one.build()
    assert done.returncode == ExitCode.OK, done.stderr
    texts = [step["text"] for step in one.receipt["steps"]]
    assert texts[2:5] == ["COPY words /words", "RUN cat /words", 'CMD ["true"]']
    assert [text for text in texts[5:] if not text.startswith("LABEL mltune.")] == []
    assert [step["is_cached"] for step in one.receipt["steps"]][3] is False
    assert one.left(left_of_ours) == []


@pytest.mark.parametrize(
    "lines",
    [
        ("WORKDIR /tmp/deep",),
        ("VOLUME /data", "VOLUME /repro_output"),
        ("USER 1234",),
        ("RUN mkdir -p repro_output && echo old >repro_output/old && chmod 700 repro_output",),
        ('HEALTHCHECK --interval=1s CMD ["false"]', "STOPSIGNAL SIGUSR1"),
    ],
)
def test_images_of_all_kinds_can_write_their_artifacts(
    engine: Any, tiny_base: str, case: New, lines: tuple[str, ...]
) -> None:
    one = case(engine).write(tiny_base, *lines, 'CMD ["sh", "-c", "echo $$ > repro_output/new"]')
    before = {volume["Name"] for volume in engine.client.volumes()["Volumes"] or ()}
    done = one.build()
    assert done.returncode == ExitCode.OK, done.stderr
    assert one.receipt["run"]["artifacts"] == ["new"]
    after = {volume["Name"] for volume in engine.client.volumes()["Volumes"] or ()}
    assert len(after - before) < 2  # another test's container may have one at this moment


def test_a_strange_folder_is_refused_untouched(engine: Any, tiny_base: str, case: New) -> None:
    one = case(engine).script(tiny_base, "true")
    one.output.mkdir()
    (one.output / "thesis.txt").write_text("months of work")
    done = one.build()
    assert done.returncode == ExitCode.USAGE
    assert "holds files that build-image did not write" in done.stderr
    assert [path.name for path in one.output.iterdir()] == ["thesis.txt"]
    assert one.engine.client.images(name=one.tag) == []


def test_an_earlier_result_comes_back_when_the_build_fails(
    engine: Any, tiny_base: str, case: New
) -> None:
    one = case(engine).script(tiny_base, "echo first >/repro_output/first")
    assert one.build().returncode == ExitCode.OK
    before = {p: p.read_bytes() for p in one.output.rglob("*") if p.is_file() and p.suffix}
    one.write(tiny_base, "RUN exit 9")
    assert one.build().returncode == ExitCode.NO_VERDICT
    assert {p: p.read_bytes() for p in one.output.rglob("*") if p.is_file() and p.suffix} == before
    assert (one.artifacts / "first").exists()
    one.script(tiny_base, "echo second >/repro_output/second; exit 4")
    assert one.build().returncode == ExitCode.NO_VERDICT
    assert [path.name for path in one.artifacts.iterdir()] == ["second"]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody without rights")
def test_the_caller_keeps_its_own_number(engine: Any, tiny_base: str, tmp_path: Path) -> None:
    """Run in a child that gives up root once everything is imported and the engine is open."""
    from mltune_cli.imaging.containers import RunRequest, run_container
    from mltune_cli.imaging.engine import open_engine

    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    command = ("sh", "-c", "id -u >/out/user; id -g >/out/group; chmod 600 /out/user")
    child = os.fork()
    if child == 0:
        try:
            with open_engine({"DOCKER_HOST": engine.host}) as opened:
                warm = RunRequest(tiny_base, ("true",), tmp_path, "/out", {})
                run_container(opened, warm, lambda line: None)
                os.chown(artifacts, 12345, 12346)
                socket = Path(engine.host.removeprefix("unix://"))
                # Without root's rights, the way to both must be open.
                for folder in (tmp_path, *tmp_path.parents, *socket.parents):
                    if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
                        folder.chmod(0o755)
                os.setgroups([socket.stat().st_gid])
                os.setgid(12346)
                os.setuid(12345)
                request = RunRequest(tiny_base, command, artifacts, "/out", {})
                os._exit(run_container(opened, request, lambda line: None).exit_code)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (artifacts / "user").read_text() == "12345\n"
    assert (artifacts / "group").read_text() == "12346\n"
    facts = (artifacts / "user").stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (12345, 12346, 0o600)
