"""The work of a child process: build one model with one compiler, run it and time it, and write down each step.

    order ──▶ unpack ─ build ─ inspect ─ open ─ run ─ time ─ profile ─ power ─ trtexec ──▶ attempt.json, build.log, …

The files are written as the work goes on. So a crash leaves the messages up to it, and the results of the steps before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from vitdeploy import apart, targets
from vitdeploy import precision as precisions
from vitdeploy.artifact.temporary import remove_process_folders
from vitdeploy.commands.board import models
from vitdeploy.commands.board.messages import MessageLog
from vitdeploy.commands.board.recording import BUILD_LOG, INSPECTED, LayerTime, RecordedBuild, Times, parse_messages
from vitdeploy.errors import TargetUnavailable, VitdeployError
from vitdeploy.evidence import Power
from vitdeploy.frozen import replace
from vitdeploy.graph.parity import compare
from vitdeploy.measure import power
from vitdeploy.session import Session
from vitdeploy.targets import Compiled

ATTEMPT, WORK = "attempt.json", "work"
_TIMED_SECONDS, _FEWEST_RUNS, _WARM_UP_RUNS = 1.0, 20, 5
_POWER_SECONDS = 2.0
_POWER_MODEL = models.MODELS[0]
"""One model is enough to see which rails there are, and what idle and load do to them."""
_PROFILED_LAYERS = 200

ResultT = TypeVar("ResultT")


class Order(BaseModel):
    """A model to build, the compiler, and the folder to write into."""

    model_config = ConfigDict(frozen=True)
    target: str
    model: str
    precision: str
    folder: Path


class _Journal:
    """The attempt so far, on the disk after every step."""

    def __init__(self, order: Order) -> None:
        self._path = order.folder / ATTEMPT
        self.attempt = RecordedBuild(target=order.target, model=order.model, precision=order.precision, status="failed")

    def note(self, **results: Any) -> None:
        """Add results."""
        self.attempt = replace(self.attempt, **results)
        temporary = self._path.with_suffix(".new")
        temporary.write_text(self.attempt.model_dump_json(), encoding="utf-8")
        temporary.replace(self._path)

    def step(self, name: str, work: Callable[[], ResultT]) -> ResultT:
        """Do a step: its name is on the disk before it begins, and its time when it has ended."""
        self.note(stage=name)
        started = time.monotonic()
        try:
            return work()
        finally:
            self.note(seconds={**self.attempt.seconds, name: round(time.monotonic() - started, 3)})

    def try_step(self, name: str, work: Callable[[], ResultT]) -> ResultT | None:
        """Do a step whose failure does not concern the others. Return None if it failed."""
        try:
            return self.step(name, work)
        except VitdeployError as error:
            problem = error.message
        except Exception as error:  # noqa: BLE001  what a compiler raises on a board is what a recording is for
            problem = f"unexpected {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        self.note(problems={**self.attempt.problems, name: problem})
        return None


def _work(task: bytes) -> bytes:
    order = Order.model_validate_json(task)
    journal = _Journal(order)
    try:
        _attempt(order, journal)
    except VitdeployError as error:
        journal.note(status="built" if journal.attempt.status == "built" else "refused", why=error.message)
    finally:
        remove_process_folders()
    return b""


def _attempt(order: Order, journal: _Journal) -> None:
    """Do all steps. An error of one that the next ones need ends it."""
    numbers = precisions.kind_of(order.precision).numbers
    target = targets.kind_of(order.target)()  # type: ignore[call-arg]  # each has a default device
    recorder = journal.step("load", lambda: target.recorder(numbers))
    if recorder is None:
        raise TargetUnavailable(f"{order.target} is not installed", fix="")
    if (reason := target.refuse_numbers(numbers)) is not None and recorder.device == target.device:
        raise TargetUnavailable(reason, fix="")
    journal.note(device=recorder.device)
    work = order.folder / WORK
    work.mkdir()
    model = models.unpack(order.model, order.precision, work)
    with MessageLog(order.folder / BUILD_LOG) as log:
        compiled = journal.step("build", lambda: recorder.compile(model.bundle, work, log.add))
    journal.note(status="built", **_describe_build(compiled))
    description = journal.try_step("inspect", lambda: recorder.inspect(compiled)) or ""
    (order.folder / INSPECTED).write_text(description, encoding="utf-8")
    lines = [line for _, text in parse_messages(_read_lines(order.folder / BUILD_LOG)) for line in text.split("\n")]
    logged, inspected = recorder.count_layers(lines, description)
    journal.note(layers={"log": logged, "inspector": inspected})
    session = journal.step("open", lambda: recorder.open(compiled))
    try:
        _run(order, journal, model, session)
    finally:
        session.close()
    external = journal.try_step("trtexec", lambda: target.time_externally(compiled, {}, _TIMED_SECONDS))
    if external is not None:
        device, end_to_end = _describe_times(external.device_ms), _describe_times(external.end_to_end_ms)
        journal.note(trtexec={"device": device.model_dump(), "end_to_end": end_to_end.model_dump()})
    journal.note(stage="done")


def _describe_build(compiled: Compiled) -> dict[str, Any]:
    audit = compiled.audit
    assert audit is not None
    attention = audit.attention
    return {
        "engine_bytes": (compiled.folder / compiled.runs).stat().st_size,
        "notes": audit.doubts,
        "attention": {
            "sites": attention.sites,
            "fused": attention.fused,
            "unfused": {unfused.site: unfused.reason for unfused in attention.unfused},
        },
        "linears": audit.linears.model_dump(),
    }


def _run(order: Order, journal: _Journal, model: models.BoardModel, session: Session) -> None:
    feeds = {model.bundle.input_name: model.image}
    outputs = journal.step("run", lambda: session.run(feeds))
    parity = compare(model.expected, outputs, batch=1)
    journal.note(
        status="run",
        parity={name: getattr(parity, name) for name in ("max_abs", "reference_max", "cosine", "problem")},
        effective=dict(session.effective),
    )
    if journal.attempt.has_wrong_numbers:
        journal.note(why=f"its numbers are not those of FP32: {parity.problem or f'cosine {parity.cosine:.4f}'}")
    if (times := journal.try_step("time", lambda: _time(session, feeds))) is not None:
        journal.note(device_times=times[0], end_to_end_times=times[1], effective=dict(session.effective))
    counters = journal.try_step("profile", lambda: session.profile(feeds))
    if counters is not None:
        layers = sorted(counters.operators, key=lambda layer: -layer.ms)[:_PROFILED_LAYERS]
        journal.note(profile=tuple(LayerTime(name=layer.name, kind=layer.kind, ms=layer.ms) for layer in layers))
    if order.model == _POWER_MODEL:
        meter, why = power.find_meter()
        if meter is None:
            journal.note(power=Power(why=why))
        else:
            measured = journal.try_step(
                "power", lambda: power.measure(lambda: session.run(feeds), _POWER_SECONDS, meter)
            )
            journal.note(power=measured)


def _time(session: Session, feeds: Mapping[str, Any]) -> tuple[Times | None, Times]:
    """Return the times on the device, if the engine has a clock for them, and of a caller."""
    for _ in range(_WARM_UP_RUNS):
        session.run(feeds)
    on_device, of_caller = list[float](), list[float]()
    started = time.perf_counter()
    while time.perf_counter() - started < _TIMED_SECONDS or len(of_caller) < _FEWEST_RUNS:
        before = time.perf_counter()
        session.run(feeds)
        of_caller.append(1e3 * (time.perf_counter() - before))
        if session.device_ms is not None:
            on_device.append(session.device_ms)
    return _describe_times(on_device) if on_device else None, _describe_times(of_caller)


def _describe_times(milliseconds: Any) -> Times:
    p50, p90 = np.percentile(milliseconds, [50, 90])
    return Times(p50_ms=round(float(p50), 5), p90_ms=round(float(p90), 5), runs=len(milliseconds))


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").split("\n")


if __name__ == "__main__":
    apart.answer(_work)
