"""Running a sweep in this process, and a trial of it that finished without running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.commands.sweep.rows import record
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.commands.sweep.sweep import sweep
from vitdeploy.commands.sweep.work import SweepPlan
from vitdeploy.evidence import Sweep
from vitdeploy.pipeline.graph_cache import GraphCache

BASE = "recipe: {model: demo:digits, bench: {seconds: 0.2, threads: 1}}\n"


@dataclass
class Steps:
    """A listener that keeps the titles of all steps, and all lines."""

    titles: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        self.titles.append(title)
        yield lambda _: None

    def warn(self, message: str) -> None:
        self.lines.append(message)

    def relay(self, line: str) -> None:
        self.lines.append(line)


def write(folder: Path, text: str, name: str = "digits.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def go(file: Path, out: Path, **plan: Any) -> tuple[Sweep, Steps]:
    steps = Steps()
    return sweep(file, out, steps, SweepPlan(cache=GraphCache(), **plan)), steps


def store(trial: TrialSpec, out: Path, **facts: Any) -> None:
    """Store a trial as if it had run: its record, and a folder in the place of its artifact."""
    (out / "trials" / trial.name / "artifact").mkdir(parents=True)
    finished = record(trial.name, **{"setting": trial.setting, "axes": dict(trial.axes), **facts})
    (out / "trials" / trial.name / "trial.json").write_text(finished.model_dump_json(), encoding="utf-8")
    (out / "sweep.json").write_text("{}", encoding="utf-8")
