"""Compare vitdeploy's quantizer with NNCF's on the same graph, from what `--precision auto` measured.

    python -m benchmarks.quantizers [--work DIR]

Reads the trials of the artifacts that `python -m benchmarks.side_by_side pick` wrote; nothing is measured again. The
accuracy of both is in benchmarks/quantization.md. Writes benchmarks/quantizers.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.contenders import CONTENDERS, MERGED, OURS
from benchmarks.side_by_side_models import Case, all_cases
from benchmarks.tables import format_ratio, write_page
from vitdeploy.artifact import Trial, load
from vitdeploy.recipe import NNCF, OWN

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("model", "target", "precision", "own", "own, attention INT8 too", "NNCF", "the faster one, at their best")
Row = tuple[str, ...]


def main() -> None:
    """Read all artifacts, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(tempfile.gettempdir()) / "vitdeploy-side-by-side"
    parser.add_argument("--work", type=Path, default=work, metavar="DIR", help=f"folder of models (default: {work})")
    cases = [*all_cases(parser.parse_args().work)]
    rows = [row for case in cases for row in _read(case)]
    write_page(TABLE, _heading({machine for case in cases for machine in _list_machines(case)}), COLUMNS, rows)
    print(TABLE.read_text(encoding="utf-8"))


def _list_machines(case: Case) -> Iterator[str]:
    """Yield the machine and the versions that each artifact was made with."""
    for contender in CONTENDERS:
        if contender.title.startswith(OURS) and not contender.read_error(case):
            manifest = load(case.folder / contender.path).manifest
            host, versions = manifest.target.host, manifest.versions
            assert host is not None
            libraries = ", ".join(f"{name} {versions[name]}" for name in ("nncf", "onnxruntime", "openvino"))
            yield f"{host.cpu}, {host.cores} threads, {' '.join(host.isa)}; {libraries}."


def _read(case: Case) -> Iterator[Row]:
    """Yield a row for each INT8 precision that both quantizers were tried in."""
    listed: set[tuple[str, str]] = set()
    for contender in reversed(CONTENDERS):  # at f32 first: there auto tries INT8 attention beside float32 too
        if not contender.title.startswith(OURS) or contender.title == MERGED or contender.read_error(case):
            continue
        manifest = load(case.folder / contender.path).manifest
        target = manifest.target.kind
        for precision in dict.fromkeys(trial.precision for trial in manifest.trials if trial.quantizer == NNCF):
            if (target, precision) not in listed:
                listed.add((target, precision))
                trials = [trial for trial in manifest.trials if trial.precision == precision]
                yield case.title, target, precision, *_compare(trials)


def _compare(trials: Sequence[Trial]) -> Row:
    own, own_attention, other = (
        next((t for t in trials if t.quantizer == quantizer and t.attention == attention), None)
        for quantizer, attention in ((OWN, ""), (OWN, "all"), (NNCF, ""))
    )
    best = max(filter(None, (own, own_attention)), key=_speed, default=None)
    if other is None or other.speedup is None or best is None or best.speedup is None:
        verdict = ""
    elif best.speedup.ci95[0] > other.speedup.ci95[1]:
        verdict = "vitdeploy's"
    elif other.speedup.ci95[0] > best.speedup.ci95[1]:
        verdict = "NNCF's"
    else:
        verdict = "not decided"
    return *(_describe(trial) for trial in (own, own_attention, other)), verdict


def _speed(trial: Trial) -> float:
    return trial.speedup.ratio if trial.speedup is not None else 0.0


def _describe(trial: Trial | None) -> str:
    if trial is None:
        return ""
    return format_ratio(trial.speedup, digits=2) if trial.speedup is not None else trial.why


def _heading(machines: set[str]) -> list[str]:
    if len(machines) > 1:
        raise SystemExit(f"the artifacts are of several machines or versions: {' / '.join(sorted(machines))}")
    return [
        "# vitdeploy's quantizer beside NNCF's",
        "",
        "Both quantize the same raised graph, under the same rules about which linears they may touch. How many",
        "times as fast as float32 on the same target, in the short comparisons in which `--precision auto` chose (95 %",
        "bootstrap interval over blocks; batch 1; random weights but for Fashion-MNIST). *own, attention INT8 too*: q,",
        "k, v and the probabilities, for OpenVINO. NNCF decides about attention itself, and quantizes it where the",
        "rest computes in float32. *the faster one*: decided if the intervals do not overlap. The accuracy of both on",
        "trained models: [quantization](quantization.md). Made by `python -m benchmarks.quantizers` from the",
        "artifacts of [side by side](side_by_side.md).",
        "",
        *machines,
    ]


if __name__ == "__main__":
    main()
