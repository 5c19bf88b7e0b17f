"""GitHub's workflows: what they run is pinned, what they may do is little, and they end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
WRITES = {"release.yml": {"attest": {"id-token", "attestations"}, "publish": {"id-token"}}}

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no workflows")


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def content(path: Path) -> dict[str, Any]:
    """The workflow as GitHub reads it, but for `on`, which YAML 1.1 takes for a truth value."""
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def test_every_action_is_pinned_by_its_commit(workflow: Path) -> None:
    used = re.findall(r"uses: (.*)", workflow.read_text(encoding="utf-8"))
    assert used
    assert [line for line in used if not PINNED.fullmatch(line)] == []


def test_an_action_has_one_version_everywhere() -> None:
    used = {line for path in WORKFLOWS for line in re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))}
    names = [line.partition("@")[0] for line in used]
    assert sorted(names) == sorted(set(names))


def test_every_job_ends_and_may_write_only_what_it_is_for(workflow: Path) -> None:
    loaded = content(workflow)
    assert loaded["permissions"] in ({}, {"contents": "read"})
    assert loaded["concurrency"]["group"]
    for name, job in loaded["jobs"].items():
        assert job["timeout-minutes"] <= 180, name
        writes = {scope for scope, access in job.get("permissions", {}).items() if access == "write"}
        assert writes == WRITES.get(workflow.name, {}).get(name, set())


def test_a_checkout_keeps_no_credentials(workflow: Path) -> None:
    steps = [step for job in content(workflow)["jobs"].values() for step in job["steps"]]
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)
