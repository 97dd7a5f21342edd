"""What CI systems are given of a report: nothing of it may be taken for markup or a command."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.rendering.github import annotations, show_in_actions, summary
from mltune_cli.rendering.junit import junit_text
from mltune_cli.reproduction.report import (
    Diagnosis,
    FirstDifference,
    GoldenChange,
    GoldenComparison,
    Localisation,
    ReproductionReport,
    RunOutcome,
)

NASTY = (
    "a <script>alert(1)</script> & `b` ::error::x\n::set-output name=y::z %0A ]]> \x00\x1b \ud7ff"
)


def report(**fields: object) -> ReproductionReport:
    outcome = RunOutcome(
        number=1, folder="f", status="finished", steps=3, last_loss=1.5, error=None
    )
    values = {
        "verdict": "different", "recipe_name": "recipe", "recipe_digest": None,
        "environment_class": None, "compared_steps": 3, "first_difference": None,
        "reason": None, "runs": [outcome, outcome], "seconds": 1.0,
    } | fields  # fmt: skip
    return ReproductionReport.model_validate(values)


def parted(text: str) -> ReproductionReport:
    return report(
        recipe_name=text,
        first_difference=FirstDifference(
            step=2, stage="loss", stages=["loss"], runs=(1, 2), values=(text, "b")
        ),
        diagnosis=Diagnosis(cause="clock", title=text, evidence=[text], remedy=text),
        notes=[text],
        golden=GoldenComparison(
            source=text, verdict="not_deterministic", environment_class=None, record_command=text,
            changes=[GoldenChange(kind="recipe", name=text, was=text, now=text)],
        ),
    )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.text() | st.just(NASTY))
def test_any_text_stays_text(text: str) -> None:
    found = parted(text)
    root = ElementTree.fromstring(junit_text(found).encode())
    cases = root.findall("./testsuite/testcase")
    assert [case.get("name") for case in cases] == [
        "the runs are equal", "the runs equal the golden",
    ]  # fmt: skip
    lines = list(annotations(found, {}, None))
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert "\r" not in lines[0]
    assert lines[0].startswith("::error title=mltune%3A not deterministic::")
    page = summary(found)
    assert "<script" not in page
    # Every sentence is one item: no text can begin a line of its own.
    assert all(line.lstrip().startswith(("- ", "### ")) for line in page.split("\n") if line)


def test_markup_is_taken_away() -> None:
    page = summary(parted("**b** [link](x) @someone #12 | <b> _i_ `c`"))
    for raw in ("**b**", "[link]", " @someone", " #12", "<b>", " _i_", "`c`"):
        assert raw not in page
    assert r"\*\*b\*\* \[link\](x) \@someone \#12 \| &lt;b&gt; \_i\_ \`c\`" in page


def test_a_mark_is_set_on_the_changed_key_and_on_the_operation(tmp_path: Path) -> None:
    key = GoldenChange(kind="recipe", name="train.learning_rate", was="1", now="2")
    golden = GoldenComparison(
        source="g", verdict="code_changed", environment_class="x", record_command="c",
        first_difference=FirstDifference(
            step=1, stage="loss", stages=["loss"], runs=(0, 1), values=("a", "b")
        ),
        changes=[key],
    )  # fmt: skip
    origins = {"data.train": "smoke.yaml (bundled):3", "train.learning_rate": "sub/r.yaml:12"}
    workspace = str(Path.cwd())
    (line,) = annotations(report(golden=golden), origins, workspace)
    assert line.startswith("::error file=sub/r.yaml,line=12,title=")
    assert "train.learning_rate: 1 is now 2" in line

    where = Localisation(
        step=1, process="main", record=0, operation="aten.mm", phase="forward", module=None,
        node=None, differs="output", frame=f"{tmp_path}/my train.py:7 in step",
    )  # fmt: skip
    (line,) = annotations(report(localisation=where), {}, str(tmp_path))
    assert line.startswith("::error file=my train.py,line=7,")
    # A recipe without a changed key: its first line.
    (line,) = annotations(report(), origins, workspace)
    assert line.startswith("::error file=sub/r.yaml,line=1,")
    # What travels in the wheel is no file of the checkout; no verdict is a warning.
    (line,) = annotations(
        report(verdict="no_verdict", reason="a run failed"),
        {"data.train": "smoke.yaml (bundled):3"}, workspace,
    )  # fmt: skip
    assert line.startswith("::warning title=mltune%3A no verdict::")
    assert list(annotations(report(verdict="reproducible"), origins, workspace)) == []


def test_only_actions_are_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n")
    show_in_actions(report(), {}, {"GITHUB_STEP_SUMMARY": str(page)})
    assert page.read_text() == "before\n"
    assert capsys.readouterr() == ("", "")
    show_in_actions(report(), {}, {"GITHUB_STEP_SUMMARY": str(page), "GITHUB_ACTIONS": "true"})
    assert page.read_text().startswith("before\n### ❌")
    assert capsys.readouterr().err.startswith("::error ")
    # A page that cannot be written costs nobody the verdict.
    show_in_actions(report(), {}, {"GITHUB_STEP_SUMMARY": str(tmp_path), "GITHUB_ACTIONS": "true"})
    assert "GITHUB_STEP_SUMMARY cannot be written" in capsys.readouterr().err
