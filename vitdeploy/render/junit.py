"""The gate as a JUnit file, in which CI systems show one test for each check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from vitdeploy.artifact import atomic_file
from vitdeploy.errors import UsageError
from vitdeploy.escaping import escape_lines
from vitdeploy.evidence import Gate
from vitdeploy.render import numbers

_SUITE = "vitdeploy gate"
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def render(gate: Gate) -> bytes:
    """Return UTF-8 XML. A check that fails is a `failure`; one that cannot be decided is an `error`."""
    statuses = [check.status for check in gate.checks]
    counts = {"tests": len(statuses), "failures": statuses.count("fail"), "errors": statuses.count("invalid")}
    attributes = {"name": _SUITE, **{name: str(count) for name, count in counts.items()}}
    root = ET.Element("testsuites")
    suite = ET.SubElement(root, "testsuite", attributes)
    if numbers.is_digest(gate.digest):
        properties = ET.SubElement(suite, "properties")
        ET.SubElement(properties, "property", name="evidence sha256", value=_clean(gate.digest))
    for check in gate.checks:
        case = ET.SubElement(suite, "testcase", classname="vitdeploy.verdict", name=_clean(check.name))
        figures = f"observed {numbers.observed(check.observed)}, limit {numbers.observed(check.limit)}"
        if check.status == "pass":
            ET.SubElement(case, "system-out").text = _clean_lines([f"{figures}: {check.why}", *check.details])
        else:
            kind = "failure" if check.status == "fail" else "error"
            problem = ET.SubElement(case, kind, message=_clean(check.why), type=check.status)
            problem.text = _clean_lines([figures, *check.details])
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def write(gate: Gate, path: Path) -> None:
    """Write the XML to a file, atomically.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        with atomic_file(path) as temporary:
            temporary.write_bytes(render(gate))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", fix="Choose another file with --junit."
        ) from None


def _clean_lines(lines: Sequence[str]) -> str:
    return "\n".join(_clean(line) for line in lines)


def _clean(text: str) -> str:
    """Escape what no XML may have, and what a terminal would act on."""
    return _NOT_IN_XML.sub("?", escape_lines(text))
