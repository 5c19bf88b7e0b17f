"""Compare vitdeploy with the tools that users would pick instead, in speed, accuracy and fused attention.

    python -m benchmarks.side_by_side make | pick | answer | time [--work DIR] [--seconds S] [CASE…]

The four steps are run in this order:

- `make`: every other tool writes its model, in an environment of its own where pinned versions clash.
- `pick`: vitdeploy's `--precision auto` times its candidates and picks one. The machine should be idle.
- `answer`: every model classifies the test images.
- `time`: all models run in turns in one process, with vitdeploy's stopwatch and the same threads. Writes
  benchmarks/side_by_side.md, in which every kind of CPU has a section. A tool that failed on the way gets a row with
  the reason.

CASE is the name of a folder, such as vit-base.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.contenders import CONTENDERS, MERGED, OURS, PICKS, PICKS_AT_F32, Contender
from benchmarks.quantization import first_output
from benchmarks.side_by_side_models import INPUT, Case, all_cases
from benchmarks.tables import describe_cpu, describe_machine, format_doubts, format_ratio, format_table, parse_rows
from benchmarks.venvs import read_pins
from vitdeploy import environment
from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Bench, Run
from vitdeploy.measure.latency import measure
from vitdeploy.measure.statistics import ratio_interval
from vitdeploy.render.numbers import drop
from vitdeploy.session import Session

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = (
    "model", "tool", "computes in", "p50 ms", "× fastest stock FP32 [95 %]", "× vitdeploy's pick [95 %]",
    "drop, points [95 %]", "attention fused", "note",
)  # fmt: skip
SUMMARY_COLUMNS = (
    "model", "fastest of the other tools", "vitdeploy", "× [95 %]", "fastest of the other tools, at f32",
    "vitdeploy, at f32", "× [95 %] at f32", "× [95 %] with tokens merged", "measurement",
)  # fmt: skip
_SECTION = "## "
"""Begins the heading of a section: the CPU."""
Row = tuple[str, ...]


def make(case: Case, *, picks: bool) -> None:
    """Let vitdeploy make its models (`picks`), or all other tools theirs."""
    case.prepare()
    for contender in CONTENDERS:
        if picks != contender.title.startswith(OURS) or not contender.takes(case):
            continue
        contender.make(case)
        print(case.title, contender.title, contender.read_error(case) or "made", sep=" | ", flush=True)


def answer(case: Case) -> None:
    """Let every model classify the test images, and save the logits beside the models."""
    if not case.trained:
        return
    images = case.subject.test[0]
    for contender in CONTENDERS:
        path = _logits_file(case, contender)
        if path.exists() or contender.read_error(case):
            continue
        try:
            with contender.open(case, threads=1) as session:  # more threads wait long for each other on a busy machine
                logits = [first_output(session.run({INPUT: image[None]})) for image in images]
        except (VitdeployError, RuntimeError) as error:
            print(contender.title, error, sep=" | ")
            continue
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.concatenate(logits))
        print(case.title, contender.title, _drop(case, contender), sep=" | ", flush=True)


def _logits_file(case: Case, contender: Contender) -> Path:
    name = re.sub(r"\W+", "-", contender.title)
    return case.folder / "answers" / f"{name}.npy"


def _drop(case: Case, contender: Contender) -> str:
    path = _logits_file(case, contender)
    return drop(case.subject.judge(np.load(path)).metrics["top1"]) if path.exists() else ""


def time(case: Case, seconds: float) -> tuple[Row, list[Row]]:
    """Time all models in turns; return a summary, and a row for every contender."""
    contenders = [contender for contender in CONTENDERS if contender.takes(case)]
    notes = {contender.title: contender.read_error(case) for contender in contenders}
    descriptions: dict[str, tuple[str, str]] = {}
    with ExitStack() as stack:
        sessions: list[Session] = []
        for contender in contenders:
            if notes[contender.title]:
                continue
            try:
                session = stack.enter_context(contender.open(case, environment.available_cores()))
                session.run(case.feeds)
                numbers, fused = contender.describe_numbers(case, session), contender.describe_attention(case, session)
                descriptions[contender.title] = numbers, fused
            except (VitdeployError, RuntimeError) as error:
                notes[contender.title] = " ".join(str(error).split())
                continue
            sessions.append(session)
        bench = measure(sessions, [case.feeds] * len(sessions), batch=1, seconds=seconds)
    return _summarize(case, bench, descriptions), _rows(case, bench, descriptions, notes)


def _summarize(case: Case, bench: Bench, descriptions: dict[str, tuple[str, str]]) -> Row:
    """Compare vitdeploy with the fastest of the other tools: as they run, without bfloat16, with tokens merged."""
    runs = {run.name: run for run in bench.runs}
    others = [run for run in bench.runs if not run.name.startswith(OURS)]
    others_at_f32 = [run for run in others if "bf16" not in descriptions[run.name][0]]
    best, best_at_f32 = (max(candidates, key=_speed) for candidates in (others, others_at_f32))
    pick, pick_at_f32 = (max((runs[name] for name in names), key=_speed) for names in (PICKS, PICKS_AT_F32))
    return (
        case.title,
        best.name, _describe_pick(pick, descriptions), _ratio(best, pick),
        best_at_f32.name, _describe_pick(pick_at_f32, descriptions), _ratio(best_at_f32, pick_at_f32),
        _ratio(best, runs[MERGED]) if MERGED in runs else "", format_doubts(bench),
    )  # fmt: skip


def _describe_pick(run: Run, descriptions: dict[str, tuple[str, str]]) -> str:
    """Return the engine and the precision that auto chose, with its quantizer."""
    engine = run.name.removeprefix(OURS).partition(" ")[0]
    return f"{engine}, {descriptions[run.name][0]}"


def _rows(case: Case, bench: Bench, descriptions: dict[str, tuple[str, str]], notes: dict[str, str]) -> list[Row]:
    runs = {run.name: run for run in bench.runs}
    stock = [runs[name] for name, (numbers, _) in descriptions.items() if numbers == "fp32" and OURS not in name]
    fastest, pick = (max(candidates, key=_speed) for candidates in (stock, [runs[name] for name in PICKS]))
    sites = descriptions[pick.name][1].partition("/")[2]
    common_doubts = [doubt for doubt in bench.doubts if not any(doubt in run.doubts for run in bench.runs)]
    rows = []
    for name, note in notes.items():
        if name not in runs:
            rows.append((case.title, name, *[""] * 6, note))
            continue
        run = runs[name]
        numbers, fused = descriptions[name]
        fused = f"{fused}/{sites}" if fused and "/" not in fused else fused
        figures = (f"{run.p50_ms:.2f}", _ratio(fastest, run), _ratio(pick, run))
        drop = _drop(case, next(contender for contender in CONTENDERS if contender.title == name))
        rows.append((case.title, name, numbers, *figures, drop, fused, "; ".join([*run.doubts, *common_doubts])))
    return rows


def _speed(run: Run) -> float:
    """Return the speed-up over the first run, which varies less than p50 when the machine gets slower or faster."""
    return run.speedup.ratio if run.speedup else 1.0


def _ratio(reference: Run, run: Run) -> str:
    return format_ratio(None if run is reference else ratio_interval(reference.blocks, run.blocks), digits=2)


def main() -> None:
    """Run one step for the chosen models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("make", "pick", "answer", "time"))
    work = Path(tempfile.gettempdir()) / "vitdeploy-side-by-side"
    parser.add_argument("--work", type=Path, default=work, metavar="DIR", help=f"folder of models (default: {work})")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each model (default: 60)")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="folders, such as vit-base (default: all)")
    arguments = parser.parse_intermixed_args()
    warnings.simplefilter("ignore")
    for case in all_cases(arguments.work):
        if arguments.cases and case.folder.name not in arguments.cases:
            continue
        if arguments.step in ("make", "pick"):
            make(case, picks=arguments.step == "pick")
        elif arguments.step == "answer":
            answer(case)
        else:
            _store(*time(case, arguments.seconds), [other.title for other in all_cases(arguments.work)])


def _store(summary: Row, new: list[Row], order: list[str]) -> None:
    """Put a model's rows into the tables of this CPU, in place of those that it had. Other CPUs keep their sections."""
    sections = _read_sections()
    own = sections.get(describe_cpu(), [])

    def merge(columns: tuple[str, ...], rows: list[Row]) -> list[Row]:
        others = [row for row in parse_rows(own, columns) if row[0] != summary[0]]
        return sorted([*others, *rows], key=lambda row: order.index(row[0]))

    short, rows = merge(SUMMARY_COLUMNS, [summary]), merge(COLUMNS, new)
    sections[describe_cpu()] = [
        describe_machine("torch", "transformers", "onnxruntime", "openvino").removeprefix(f"{describe_cpu()}; "),
        *_describe_gaps(order, short, rows),
        "",
        *format_table(SUMMARY_COLUMNS, short),
        "",
        *format_table(COLUMNS, rows),
        "",
    ]
    lines = list(_heading())
    for cpu, section in sections.items():
        lines += ["", f"{_SECTION}{cpu}", "", *section]
    TABLE.write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8")
    print(*summary, sep=" | ", flush=True)


def _read_sections() -> dict[str, list[str]]:
    """Return the lines of the page for each kind of CPU."""
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []
    sections: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith(_SECTION):
            section = sections[line.removeprefix(_SECTION)] = []
        elif sections:
            section.append(line)
    return {cpu: "\n".join(section).strip("\n").split("\n") for cpu, section in sections.items()}


def _describe_gaps(order: list[str], summary: list[Row], rows: list[Row]) -> list[str]:
    """Say which models are not measured, and which were by an earlier version of this script, without a summary."""
    compared, measured = ({row[0] for row in table} for table in (summary, rows))
    old = [title for title in order if title in measured - compared]
    missing = [title for title in order if title not in measured]
    lines = []
    if old:
        lines.append(f"Measured at an earlier commit, in fewer ways: {'; '.join(old)}.")
    if missing:
        lines.append(f"Not measured yet: {'; '.join(missing)}.")
    return ["", *lines] if lines else []


def _heading() -> list[str]:
    pins = "; ".join(f"{name}: {', '.join(read_pins(name))}" for name in ("peers", "optimum-intel", "optimum-onnx"))
    return [
        "# Side by side with the tools that users would pick instead",
        "",
        "Made by `python -m benchmarks.side_by_side` (make, pick, answer, time). Median latency at batch 1. All ways",
        "to run a model are timed in turns in one process on the same threads. Speeds are ratios over the interleaved",
        "blocks with 95 % bootstrap intervals; above 1 is faster. Opening a model anew changes them by up to 1 %,",
        "which the intervals do not include. Every kind of CPU has a section, with all ways in its second table. The",
        "first compares vitdeploy's fastest artifact that `--precision auto` wrote with the fastest row of all other",
        'tools: as their users run them, where bfloat16 is forbidden on both sides ("at f32", as on most edge CPUs),',
        "and with tokens merged. All are chosen after the measurement.",
        "",
        "- All tools got the same transformers model and the same calibration images: 32, or 128 for the trained",
        "  models. The first eight models have random weights, so only their speed means something.",
        "- *tokens merged*: half of the patches behind the second block, and half of the rest behind the seventh. On a",
        "  trained model that costs 0.2 points ([fewer tokens](fewer_tokens.md)). Swin refuses it: windows cannot lose",
        "  tokens.",
        "- *fastest stock FP32*: the fastest row of a model that computes in fp32, without vitdeploy's rows.",
        "  *vitdeploy's pick*: the faster of its `auto` artifacts for OpenVINO and ONNX Runtime.",
        "- *drop*: FP32 - deployed, in points of top-1 on the 10,000 test images of Fashion-MNIST, with its paired",
        "  interval (Tango's); below 0 the deployed model is better. The INT8-hostile twin computes the same FP32",
        "  function (`benchmarks/hostile.py`).",
        "- *computes in*: where the CPU has bf16, OpenVINO uses it for what is not quantized. Models that tools wrote",
        '  for OpenVINO run that way, as their users run them; "at f32" forbids it. For vitdeploy it is what auto',
        "  chose, with random weights by speed alone: the precision, the operands of attention in INT8, and NNCF where",
        "  its scales and rounding were faster than vitdeploy's own.",
        "- *attention fused*: sites that run as one kernel, by OpenVINO's runtime model and ONNX Runtime's profile.",
        "- *opset*: of `torch.onnx.export(dynamo=True)`. 20 is its default. 23 has an operator for attention, on which",
        "  ORT's quantizers fail with an AssertionError; so they got 20, and NNCF got 23.",
        "- RF-DETR: the other tools quantize all of it. vitdeploy leaves its decoder, heads and selection in float,",
        "  because a detector is known that lost its accuracy in INT8 there; random weights do not show it.",
        "- All rows of a model are of one run. The models were measured at several commits.",
        "- optimum's ways are there for classifiers, ORT's optimizer for plain ViTs.",
        "- *note*: doubts about the measurement, or why there is none. No note: a valid measurement.",
        "",
        f"Separate environments: {pins}.",
    ]


if __name__ == "__main__":
    main()
