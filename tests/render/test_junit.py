from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vitdeploy.errors import UsageError
from vitdeploy.evidence import Check, Gate
from vitdeploy.render import junit


def check(status: str, why: str = "because") -> Check:
    return Check(name=f"a {status} check", observed=1.234, limit=2.0, status=status, why=why)


def test_one_testcase_for_each_check(tmp_path: Path) -> None:
    gate = Gate(verdict="fail", checks=(check("pass"), check("fail"), check("invalid"), check("invalid")))
    path = tmp_path / "gate.xml"
    junit.write(gate, path)
    suite = ET.parse(path).getroot().find("testsuite")
    assert suite is not None
    assert {key: suite.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "4",
        "failures": "1",
        "errors": "2",
    }
    assert [case.get("name") for case in suite] == [c.name for c in gate.checks]
    assert [[child.tag for child in case] for case in suite] == [["system-out"], ["failure"], ["error"], ["error"]]
    assert suite[1][0].get("message") == "because"
    assert "1.23, limit 2.00" in (suite[1][0].text or "")
    assert [p.name for p in tmp_path.iterdir()] == ["gate.xml"]


def test_any_text_is_well_formed() -> None:
    nasty = 'a < b & "c" \x00\x1b[31m \ud800 ]]> é'
    root = ET.fromstring(junit.render(Gate(verdict="fail", checks=(check("fail", nasty),))))
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.get("message") == r'a < b & "c" \x00\x1b[31m \ud800 ]]> é'


def test_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        junit.write(Gate(verdict="pass", checks=()), tmp_path / "no" / "gate.xml")
