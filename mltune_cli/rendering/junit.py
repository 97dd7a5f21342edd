"""A check as JUnit XML, which CI systems show beside their tests."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mltune_cli.rendering.verdicts import golden_sentence, report_lines, runs_sentence
from mltune_cli.reproduction.report import ReproductionReport

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# XML 1.0 cannot hold them in any spelling.
_UNSPEAKABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_text(report: ReproductionReport) -> str:
    """Return the report as JUnit XML: one case for the runs, one for the golden.

    A negative verdict is a failure; no verdict is an error, as a test that could not be run is.
    Source: the schema that Jenkins publishes for its JUnit plugin.
    """
    from xml.etree import ElementTree

    suite = ElementTree.Element("testsuite", {"name": "mltune repro-check"})
    _add_properties(suite, report)
    golden = report.golden
    runs = _case(suite, report, "the runs are equal")
    runs.set("time", f"{report.seconds:.3f}")
    is_undecided = golden is not None and golden.verdict == "environment_changed"
    if report.first_difference is not None:
        _add(runs, "failure", report, runs_sentence(report))
    elif report.verdict == "no_verdict" and not is_undecided:
        _add(runs, "error", report, report.reason or "")
    if golden is not None:
        case = _case(suite, report, "the runs equal the golden")
        if golden.verdict == "code_changed":
            _add(case, "failure", report, golden_sentence(golden))
        elif golden.verdict == "environment_changed":
            kind = "error" if report.verdict == "no_verdict" else "skipped"
            _add(case, kind, report, golden_sentence(golden))
        elif golden.verdict == "not_deterministic":
            _add(case, "skipped", report, golden_sentence(golden))
    for attribute, name in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"),
                            ("skipped", "skipped")):  # fmt: skip
        suite.set(attribute, str(len(list(suite.iter(name)))))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(path: Path, report: ReproductionReport) -> None:
    """Write the report as JUnit XML.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(junit_text(report), encoding="utf-8")


def _add_properties(suite: "Element", report: ReproductionReport) -> None:
    from xml.etree import ElementTree

    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("verdict", report.verdict),
        ("golden", report.golden.verdict if report.golden else None),
        ("steps", report.compared_steps),
        ("recipe_digest", report.recipe_digest),
        ("environment_class", report.environment_class),
        ("cause", report.diagnosis.cause if report.diagnosis else None),
    ):
        if value is not None:
            ElementTree.SubElement(properties, "property", {"name": name, "value": str(value)})


def _case(suite: "Element", report: ReproductionReport, name: str) -> "Element":
    from xml.etree import ElementTree

    return ElementTree.SubElement(
        suite, "testcase", {"classname": _speakable(report.recipe_name), "name": name}
    )


def _add(case: "Element", kind: str, report: ReproductionReport, message: str) -> None:
    from xml.etree import ElementTree

    found = ElementTree.SubElement(case, kind, {"message": _speakable(message)})
    if kind != "skipped":
        found.set("type", report.diagnosis.cause if report.diagnosis else report.verdict)
        found.text = _speakable("\n".join(report_lines(report)))


def _speakable(text: str) -> str:
    return _UNSPEAKABLE.sub("?", text)
