"""Running a list of passes: the records, and which pass an error names."""

from __future__ import annotations

import pytest

from tests.graphs import parsed
from vitdeploy import passes
from vitdeploy.errors import GraphError, PassError
from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult

IDENTITY = '<ir_version: 10, opset_import: ["" : 20]> g (float[1,4] x) => (float[1,4] y) { y = Identity(x) }'


class DoNothing(Pass):
    """Leaves the graph as it is."""

    def apply(self, graph: Graph) -> PassResult:
        """Change nothing."""
        return PassResult(0)


class RefuseAll(Pass):
    """Fires once, and refuses a site."""

    def apply(self, graph: Graph) -> PassResult:
        """Change nothing."""
        return PassResult(1, {"site": "a reason"})


class FailWith(Pass):
    """Raises an exception."""

    error: type[Exception]
    message: str

    def apply(self, graph: Graph) -> PassResult:
        """Raise it."""
        raise self.error(self.message)


class FailOnPurpose(Pass):
    """Raises an error that says what to do."""

    def apply(self, graph: Graph) -> PassResult:
        """Raise it."""
        raise GraphError("the graph has no image input", fix="Export it again.")


def test_every_pass_has_a_record_and_verify_is_called_after_a_change() -> None:
    verified: list[str] = []
    records = passes.run([DoNothing(), RefuseAll()], parsed(IDENTITY), verified.append)
    assert [(r.name, r.fired, [(x.site, x.reason) for x in r.refused]) for r in records] == [
        ("do-nothing", 0, []),
        ("refuse-all", 1, [("site", "a reason")]),
    ]
    assert verified == ["refuse-all"]


def test_an_exception_in_a_pass_of_the_middle_is_named_with_those_before_it() -> None:
    fail = FailWith(error=TypeError, message="'NoneType' object\n  is not iterable")
    with pytest.raises(PassError) as raised:
        passes.run([DoNothing(), RefuseAll(), fail, DoNothing()], parsed(IDENTITY))
    reason = "TypeError: 'NoneType' object is not iterable; passes before it: do-nothing, refuse-all"
    assert str(raised.value) == f"pass fail-with failed: {reason}. Report it, with --traceback."
    assert isinstance(raised.value.__cause__, TypeError)


def test_an_exception_without_a_message_in_the_first_pass() -> None:
    with pytest.raises(PassError, match="pass fail-with failed: AssertionError; passes before it: none") as raised:
        passes.run([FailWith(error=AssertionError, message="")], parsed(IDENTITY))
    assert raised.value.fix == "Report it, with --traceback."


def test_a_long_exception_is_cut() -> None:
    with pytest.raises(PassError) as raised:
        passes.run([FailWith(error=RuntimeError, message="graph " * 1000)], parsed(IDENTITY))
    assert len(raised.value.message) < 400


def test_an_error_raised_on_purpose_keeps_its_message() -> None:
    with pytest.raises(GraphError, match=r"^the graph has no image input"):
        passes.run([DoNothing(), FailOnPurpose()], parsed(IDENTITY))
