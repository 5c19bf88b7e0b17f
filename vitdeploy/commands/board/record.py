"""Make a recording of this board, within a time limit, and pack it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from pydantic import ValidationError

from vitdeploy import apart, environment, targets
from vitdeploy.artifact import atomic_folder
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.commands.board import attempt as attempts
from vitdeploy.commands.board import compilers, facts, pack
from vitdeploy.commands.board.attempt import ATTEMPT, Order
from vitdeploy.commands.board.messages import shorten
from vitdeploy.commands.board.models import MODELS, PRECISIONS
from vitdeploy.commands.board.recording import (
    BUILD_LOG,
    FILE,
    INSPECTED,
    BuildOutcome,
    Recorded,
    RecordedBuild,
    Recording,
    State,
)
from vitdeploy.commands.board.scrub import Scrubber, make_scrubber
from vitdeploy.errors import ArtifactError
from vitdeploy.frozen import describe_unread, replace
from vitdeploy.limits import MAX_TRIAL_BYTES
from vitdeploy.progress import Progress
from vitdeploy.recipe import TargetSpec
from vitdeploy.version import __version__

_DESCRIBE_SECONDS, _ATTEMPT_SECONDS = 60, 180
"""The longest time for asking a compiler about itself, and for one model."""
_LEAST_SECONDS = 5
"""With less time left, no build is begun."""
_TIME_IS_UP = "the time of --seconds was up"

_FIRST = (("vit", "fp16"), ("vit", "fp32"), ("vit", "int8"), ("rope", "fp32"), ("rope", "fp16"), ("window", "fp16"))
"""The most telling ones come first, in case that the time does not suffice."""


def record(out: Path, seconds: float, progress: Progress, *, force: bool = False) -> Recorded:
    """Record what this board and its compilers do into the folder `out`. Nothing is sent anywhere.

    Each build runs in a process of its own. After an interrupt, what was recorded up to it is written, and the
    interrupt is raised again.

    Args:
        out: a new folder.
        seconds: the time limit.
        progress: gets the steps and warnings.
        force: replace an older recording.

    Raises:
        ArtifactError: `out` exists, or cannot be written.
    """
    started = time.monotonic()
    try:
        with atomic_folder(out, force=force, marks=(FILE,)) as folder, scratch_folder("board") as work:
            recorder = _Recorder(folder, work, started + seconds, progress)
            interrupt = _run_until_interrupted(recorder)
            recording = replace(recorder.recording, seconds=round(time.monotonic() - started, 1))
            files = pack.write(folder, recording, recorder.scrubber)
    except ArtifactError as error:
        raise ArtifactError(error.message, fix=error.fix.replace(" with -o", "").replace("-o", "--record")) from None
    if interrupt is not None:
        progress.warn(f"interrupted: {out} has what was recorded up to then")
        raise interrupt
    return Recorded(
        folder=str(out), archive=str(out / pack.ARCHIVE), files=files, complete=recording.complete, why=recording.why,
        attempts=tuple(_summarize(attempt) for attempt in recording.attempts),
        notes=() if recording.attempts else (_NO_COMPILER,),
    )  # fmt: skip


def _summarize(attempt: RecordedBuild) -> BuildOutcome:
    return BuildOutcome(**{name: getattr(attempt, name) for name in BuildOutcome.model_fields})


_NO_COMPILER = "no TensorRT was found here, so no model was built: run `vitdeploy doctor` to see why"


def _run_until_interrupted(recorder: _Recorder) -> KeyboardInterrupt | None:
    try:
        recorder.run()
    except KeyboardInterrupt as interrupt:
        recorder.stop("interrupted")
        return interrupt
    return None


class _Recorder:
    """A recording that grows: whenever it stops, `recording` is what is known."""

    def __init__(self, folder: Path, work: Path, deadline: float, progress: Progress) -> None:
        self._folder, self._work, self._deadline, self._progress = folder, work, deadline, progress
        self.recording = Recording(
            vitdeploy=__version__, host=environment.host(), libraries=environment.library_versions()
        )
        self.scrubber: Scrubber = make_scrubber(self.recording.libraries.values())

    def run(self) -> None:
        """Record everything, in the order of its use."""
        with self._progress.step("Read the state of the board"):
            self.recording = replace(
                self.recording,
                files=facts.read_files(),
                commands=facts.run_commands(),
                before=State(numbers=facts.read_numbers(), tegrastats=facts.run_tegrastats()),
            )
        compilers = [name for name in targets.names() if self._describe(name)]
        for target, (model, precision) in product(compilers, _order()):
            if self._left() < _LEAST_SECONDS:
                self.stop(_TIME_IS_UP)
                self._add(
                    RecordedBuild(target=target, model=model, precision=precision, status="skipped", why=_TIME_IS_UP)
                )
                continue
            with self._progress.step(f"{target}: build and run {model} in {precision}"):
                attempt = self._try(target, model, precision)
                self._add(attempt)  # before the step ends, where an interrupt may be raised
            outcome = f"{attempt.status}{f': {attempt.why}' if attempt.why else ''}"
            self._progress.relay(f"  {target} {model} {precision}: {outcome}")
        with self._progress.step("Read the state of the board again"):
            after = State(numbers=facts.read_numbers(), tegrastats=facts.run_tegrastats())
            self.recording = replace(self.recording, after=after)

    def stop(self, why: str) -> None:
        """Note why the recording is not complete."""
        self.recording = replace(self.recording, complete=False, why=why)

    def _add(self, attempt: RecordedBuild) -> None:
        self.recording = replace(self.recording, attempts=(*self.recording.attempts, attempt))

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _describe(self, target: str) -> bool:
        """Record what the compiler of a target says about itself. Return True if it is there."""
        if not targets.find(TargetSpec(kind=target)).is_recorded:
            return False
        try:
            answer = apart.run(
                compilers.__name__, target.encode(), seconds=_DESCRIBE_SECONDS, memory=MAX_TRIAL_BYTES.value
            )
            description = json.loads(answer)
        except apart.Refused as error:
            description = {"why": error.message}
        except apart.Failed as error:
            description = {"why": f"it {error.reason}"}
        if not description:
            return False
        self.recording = replace(self.recording, compilers={**self.recording.compilers, target: description})
        version = str(description.get("backend", "")).rpartition(" ")[2]
        self.scrubber = make_scrubber((*self.recording.libraries.values(), version))
        return "backend" in description

    def _try(self, target: str, model: str, precision: str) -> RecordedBuild:
        """Build and run a model in a process of its own. A crash of it is a recorded attempt."""
        work = self._work / f"{target}-{model}-{precision}"
        work.mkdir()
        order = Order(target=target, model=model, precision=precision, folder=work)
        limit = max(1, int(min(self._left(), _ATTEMPT_SECONDS)))
        problem = ""
        try:
            apart.run(attempts.__name__, order.model_dump_json().encode(), seconds=limit, memory=MAX_TRIAL_BYTES.value)
        except apart.Refused as error:
            problem = error.message
        except apart.Failed as error:
            problem = error.reason
        attempt = _read_attempt(work / ATTEMPT, order)
        if problem:
            attempt = replace(attempt, why=f"{attempt.stage or 'start'}: {problem}")
        self._keep_files(work, attempt)
        return attempt

    def _keep_files(self, work: Path, attempt: RecordedBuild) -> None:
        """Take the shortened log and the inspected layers over, without what identifies."""
        logs = self._folder / attempt.folder
        logs.mkdir(parents=True)
        built = attempt.status in ("run", "built")
        if lines := _read(work / BUILD_LOG):
            log = shorten(lines.split("\n"), failed=not built)
            (logs / BUILD_LOG).write_text(self.scrubber.scrub(log), encoding="utf-8", newline="")
        if description := _read(work / INSPECTED):
            (logs / INSPECTED).write_text(self.scrubber.scrub(description), encoding="utf-8", newline="")


def _order() -> Iterator[tuple[str, str]]:
    yield from _FIRST
    yield from (pair for pair in product(MODELS, PRECISIONS) if pair not in _FIRST)


def _read_attempt(path: Path, order: Order) -> RecordedBuild:
    try:
        return RecordedBuild.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:  # it crashed before the first step
        why = f"no readable results: {describe_unread(error)}"
    return RecordedBuild(target=order.target, model=order.model, precision=order.precision, status="failed", why=why)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
