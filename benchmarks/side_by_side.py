"""vitdeploy beside what its users would pick instead: speed, accuracy and fused attention of the same models.

    python -m benchmarks.side_by_side make | pick | answer | time [--work DIR] [--seconds S] [CASE…]

`make` lets every other tool write its model, each in an environment of its own where pins clash; `pick` is vitdeploy's
`--precision auto`, which times what it chooses from and so wants an idle machine; `answer` lets each of them classify
the test images; `time` runs them all interleaved in one process, with vitdeploy's stopwatch and the same threads, and
writes benchmarks/side_by_side.md. CASE is the name of a folder, such as vit-base. What fails on the way becomes a row
with its reason.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.contenders import CONTENDERS, INPUT, PICKS, Case, Contender, cases
from benchmarks.tables import machine, rows_of, written
from benchmarks.venvs import packages
from vitdeploy import environment
from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Bench, Run
from vitdeploy.measure.latency import measure
from vitdeploy.measure.statistics import ratio_interval
from vitdeploy.render.numbers import drop, speedup
from vitdeploy.session import Session

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = (
    "model", "tool", "computes in", "p50 ms", "× fastest stock FP32 [95 %]", "× vitdeploy's pick [95 %]",
    "drop, points [95 %]", "attention fused", "note",
)  # fmt: skip
Row = tuple[str, ...]


def make(case: Case, *, picks: bool) -> None:
    """The models of vitdeploy (`picks`), or those of all others."""
    case.prepare()
    for contender in CONTENDERS:
        if picks != (contender.title in PICKS):
            continue
        contender.make(case)
        print(case.title, contender.title, contender.failed(case) or "made", sep=" | ", flush=True)


def answer(case: Case) -> None:
    """What every model says to the test images, kept beside the models."""
    if not case.trained:
        return
    images = case.subject.test[0]
    for contender in CONTENDERS:
        path = _answers(case, contender)
        if path.exists() or contender.failed(case):
            continue
        try:
            with contender.open(case, threads=1) as session:  # threads that wait for a taken core wait long
                logits = [next(iter(session.run({INPUT: image[None]}).values())) for image in images]
        except (VitdeployError, RuntimeError) as error:
            print(contender.title, error, sep=" | ")
            continue
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.concatenate(logits))
        print(case.title, contender.title, _drop(case, contender), sep=" | ", flush=True)


def _answers(case: Case, contender: Contender) -> Path:
    name = re.sub(r"\W+", "-", contender.title)
    return case.folder / "answers" / f"{name}.npy"


def _drop(case: Case, contender: Contender) -> str:
    path = _answers(case, contender)
    return drop(case.subject.judged(np.load(path)).metrics["top1"]) if path.exists() else ""


def time(case: Case, seconds: float) -> list[Row]:
    """A row for every contender."""
    notes = {contender.title: contender.failed(case) for contender in CONTENDERS}
    told: dict[str, tuple[str, str]] = {}
    with ExitStack() as stack:
        sessions: list[Session] = []
        for contender in CONTENDERS:
            if notes[contender.title]:
                continue
            try:
                session = stack.enter_context(contender.open(case, environment.available_cores()))
                session.run(case.feeds)
                told[contender.title] = contender.computes_in(case, session), contender.fused(case, session)
            except (VitdeployError, RuntimeError) as error:
                notes[contender.title] = " ".join(str(error).split())
                continue
            sessions.append(session)
        found = measure(sessions, [case.feeds] * len(sessions), batch=1, seconds=seconds)
    return list(_rows(case, found, told, notes))


def _rows(case: Case, found: Bench, told: dict[str, tuple[str, str]], notes: dict[str, str]) -> list[Row]:
    runs = {run.name: run for run in found.runs}
    stock = [runs[name] for name, (numbers, _) in told.items() if numbers == "fp32" and name not in PICKS]
    fastest, pick = (max(among, key=_speed) for among in (stock, [runs[name] for name in PICKS]))
    names = [contender.title for contender in CONTENDERS]
    everywhere = [doubt for doubt in found.doubts if not any(_about(doubt, name) for name in names)]
    rows = []
    for contender in CONTENDERS:
        name, note = contender.title, notes[contender.title]
        if name not in runs:
            rows.append((case.title, name, contender.numbers, *[""] * 5, note))
            continue
        doubts = [*(doubt for doubt in found.doubts if _about(doubt, name)), *everywhere]
        run = runs[name]
        numbers, fused = told[name]
        figures = (f"{run.p50_ms:.2f}", _against(fastest, run), _against(pick, run))
        rows.append((case.title, name, numbers, *figures, _drop(case, contender), fused, "; ".join(doubts)))
    return rows


def _speed(run: Run) -> float:
    """Over the first run, block by block: steadier than p50 while the machine's mood changes."""
    return run.speedup.ratio if run.speedup else 1.0


def _about(doubt: str, name: str) -> bool:
    return doubt.startswith((f"{name}:", f"{name} uses")) or f"speed-up of {name} " in doubt


def _against(reference: Run, run: Run) -> str:
    return "1" if run is reference else speedup(ratio_interval(reference.blocks, run.blocks))


def main() -> None:
    """One step for the asked models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("make", "pick", "answer", "time"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vitdeploy-side-by-side")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each model (default: 60)")
    parser.add_argument("cases", nargs="*", help="folders, such as vit-base (default: all)")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for case in cases(asked.work):
        if asked.cases and case.folder.name not in asked.cases:
            continue
        if asked.step in ("make", "pick"):
            make(case, picks=asked.step == "pick")
        elif asked.step == "answer":
            answer(case)
        else:
            _store(time(case, asked.seconds), [other.title for other in cases(asked.work)])


def _store(new: list[Row], order: list[str]) -> None:
    """Put a model's rows into the table, in place of those that it had."""
    kept = [row for row in rows_of(TABLE, COLUMNS) if row[0] != new[0][0]]
    written(TABLE, _heading(), COLUMNS, sorted([*kept, *new], key=lambda row: order.index(row[0])))


def _heading() -> list[str]:
    pins = "; ".join(f"{name}: {', '.join(packages(name))}" for name in ("peers", "optimum-intel", "optimum-onnx"))
    return [
        "# Side by side with what users would pick instead",
        "",
        "Made by `python -m benchmarks.side_by_side` (make, pick, answer, time). Median latency at batch 1, all ways",
        "of a model interleaved in one process on the same threads. Speeds are ratios over the interleaved blocks with",
        "95 % bootstrap intervals, above 1 is faster. Opening a model anew moves them by up to 1 %, which is not in",
        "the intervals. *Fastest stock FP32*: the fastest row of a model that computes in fp32, vitdeploy's left out.",
        "*vitdeploy's pick*: the faster of its `--precision auto` artifacts. Both are chosen after the measurement.",
        "",
        "- All tools got the same transformers model (DeiT-Tiny and ViT-Base with random weights: only speed means",
        "  something there) and the same calibration images: 32, for the trained models 128.",
        "- *drop*: FP32 - deployed, in points of top-1 on the 10,000 test images of Fashion-MNIST, with its paired",
        "  interval (Tango's); below 0 the deployed model is better. The INT8-hostile twin computes the same FP32",
        "  function (`benchmarks/hostile.py`).",
        "- *computes in*: where the CPU has it, OpenVINO takes bf16 for what is not quantized. What tools write for it",
        '  runs that way, as their users run it; "at f32" forbids it. For vitdeploy, which computes the rest in fp32:',
        "  what auto chose; with random weights by speed alone. `int8-bf16` came later.",
        "- *attention fused*: sites that run as one kernel, by OpenVINO's runtime model and ONNX Runtime's profile.",
        "- *opset*: of `torch.onnx.export(dynamo=True)`. 20 is its default; 23 has an operator for attention, on which",
        "  ORT's quantizers end in an AssertionError: they got 20, NNCF 23.",
        "- *note*: doubts of the measurement, or why there is nothing. None: a valid measurement.",
        "",
        machine("torch", "transformers", "onnxruntime", "openvino"),
        f"Environments of their own: {pins}.",
    ]


if __name__ == "__main__":
    main()
