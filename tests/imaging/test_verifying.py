"""`--verify` on real engines: equal contents, the file that differs, and nothing left behind."""

from collections.abc import Callable
from typing import Any

import pytest

from mltune_cli.errors import ExitCode

New = Callable[[Any], Any]
STAMP = "RUN head -c 16 /dev/urandom >/stamp && mkdir /deep && ln -s /nowhere /deep/link"
STAGES = ("RUN echo staged >/staged", "FROM {base}", "LABEL {label}", "COPY --from=0 /staged /")


def names_of_builds(engine: Any) -> set[str]:
    """Return the names of what a comparison builds, and of stages; other tests have some, too."""
    return {
        name
        for image in engine.client.images()
        for name in image["RepoTags"] or ()
        if name.startswith(("mltune-verify:", "mltune-stage:"))
    }


def images_of(one: Any) -> list[list[str]]:
    """Return the names of every image that carries the case's label, and of its stages."""
    found = one.engine.client.images(filters={"label": one.label})
    return sorted(image["RepoTags"] or ["none"] for image in found)


def written(one: Any, base: str, *lines: str) -> Any:
    return one.write(base, *(line.format(base=base, label=one.label) for line in lines))


@pytest.fixture(params=["engine", "newer_engine"])
def any_engine(request: Any, import_base: Any) -> tuple[Any, str]:
    engine = request.getfixturevalue(request.param)
    return engine, import_base(engine, "busybox")


@pytest.mark.docker
def test_equal_contents_are_equal(
    any_engine: tuple[Any, str], case: New, left_of_ours: Any
) -> None:
    engine, base = any_engine
    one = written(case(engine), base, *STAGES, 'CMD ["true"]')
    done = one.build("--verify")
    assert done.returncode == ExitCode.OK, (done.stdout, done.stderr)
    found = one.receipt["verification"]
    assert (found["method"], found["is_identical"], found["differences"]) == ("contents", True, [])
    assert found["digests"][0] == found["digests"][1]
    assert "contents of the images are equal" in done.stdout
    check_tidy(one, left_of_ours)


def check_tidy(one: Any, left_of_ours: Any) -> None:
    """Its image is there under its name; besides that at most the stage that is kept as cache."""
    names = [name for names in images_of(one) for name in names]
    assert one.tag in names
    others = [name for name in names if name != one.tag]
    assert [name for name in others if not name.startswith("mltune-stage:")] == []
    assert len(others) <= 1
    for name in others:
        one.engine.client.remove_image(name)
    assert one.left(left_of_ours) == []


@pytest.mark.docker
def test_a_file_that_differs_is_named(
    any_engine: tuple[Any, str], case: New, left_of_ours: Any
) -> None:
    engine, base = any_engine
    one = written(case(engine), base, STAMP, *STAGES, "COPY --from=0 /stamp /", 'CMD ["true"]')
    done = one.build("--verify", "--no-run")
    assert done.returncode == ExitCode.NEGATIVE, (done.stdout, done.stderr)
    receipt = one.receipt
    assert receipt["exit_code"] == ExitCode.NEGATIVE
    assert receipt["reason"] == "two builds from nothing gave different images"
    found = receipt["verification"]
    assert found["is_identical"] is False
    assert [line.partition(":")[0] for line in found["differences"]] == ["stamp"]
    assert "stamp: " in done.stdout
    check_tidy(one, left_of_ours)


def test_a_run_in_an_image_that_differs_keeps_the_verdict(
    engine: Any, tiny_base: str, case: New
) -> None:
    one = written(case(engine), tiny_base, STAMP, 'CMD ["true"]')
    done = one.build("--verify")
    assert done.returncode == ExitCode.NEGATIVE
    assert one.receipt["run"]["exit_code"] == 0
    one.write(tiny_base, STAMP, 'CMD ["false"]')
    assert one.build("--verify").returncode == ExitCode.NO_VERDICT


def test_links_rights_and_many_differences_are_seen(engine: Any, tiny_base: str, case: New) -> None:
    many = "RUN for i in $(seq 1 80); do head -c 9 /dev/urandom >/many$i; done"
    mode = "RUN ln -s /$(head -c 9 /dev/urandom | md5sum | cut -c1-9) /link"
    one = written(case(engine), tiny_base, many, mode)
    assert one.build("--verify", "--no-run").returncode == ExitCode.NEGATIVE
    differences = one.receipt["verification"]["differences"]
    assert differences[0].startswith("link: link to /")
    assert differences[-1] == "and 31 more"


@pytest.mark.parametrize(
    ("lines", "code"), [((), ExitCode.OK), ((STAMP,), ExitCode.NEGATIVE)], ids=["equal", "other"]
)
def test_buildx_compares_whole_images(
    newer_engine: Any, newer_tiny_base: str, case: New, lines: tuple[str, ...], code: int,
    left_of_ours: Any,
) -> None:  # fmt: skip
    one = written(
        case(newer_engine), newer_tiny_base, "RUN echo equal >/equal", *lines, 'CMD ["true"]'
    )
    before = names_of_builds(newer_engine)
    done = one.build("--verify", "--no-run", "--builder", "buildx")
    assert done.returncode == code, (done.stdout, done.stderr)
    found = one.receipt["verification"]
    assert found["method"] == "image_digest"
    assert found["is_identical"] is (code == ExitCode.OK)
    assert (found["digests"][0] == found["digests"][1]) is found["is_identical"]
    assert images_of(one) == [[one.tag]]
    assert one.left(left_of_ours) == []
    assert list((one.folder / "temporary").iterdir()) == []
    assert names_of_builds(newer_engine) - before == set() or code == ExitCode.OK


def test_a_second_build_that_fails_leaves_nothing(
    engine: Any, tiny_base: str, case: New, left_of_ours: Any
) -> None:
    """The first build may fetch the file; the second finds a server that has gone."""
    one = case(engine)
    one.write(tiny_base, "RUN sleep 0.4", "RUN true")
    process = one.start("--verify", "--no-run")
    one.wait_for(lambda: "building twice from nothing" in one.said)
    process.terminate()
    assert process.wait(30) == 143
    assert images_of(one) == [[one.tag]]
    assert one.left(left_of_ours) == []
