"""Time INT8 attention in OpenVINO: in float, probabilities and v in INT8, all operands in INT8, norms folded as well.

    python -m benchmarks.int8_attention [--seconds S] [MODEL…]

Each form is timed with what surrounds the linears in float32 (`int8`) and in bfloat16 (`int8-bf16`), all in turns in
one process. The signal to noise ratio is that of the graph's outputs against float32. Writes
benchmarks/int8_attention.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from benchmarks.images import make_input, save_made_up
from benchmarks.tables import describe_machine, format_doubts, format_ratio, read_valid_rows, write_page
from vitdeploy import environment, sources
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.export import export
from vitdeploy.evidence import Audit, Bench
from vitdeploy.frozen import replace
from vitdeploy.measure.latency import measure
from vitdeploy.measure.statistics import ratio_interval
from vitdeploy.progress import Silent
from vitdeploy.recipe import VALUES, Int8Attention, ModelSpec
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.session import Array

MODELS = ("deit_tiny_patch16_224", "deit_small_patch16_224", "vit_base_patch16_224")
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("model", "precision", "attention", "fused", "p50 ms", "× attention in float", "outputs, dB", "measurement")
PRECISIONS = ("int8", "int8-bf16")
FORMS: dict[str, tuple[Int8Attention, Literal["auto", "norms"]]] = {
    "float": (False, "auto"),
    "probabilities and v in INT8": (VALUES, "auto"),
    "all operands in INT8": (True, "auto"),
    "all operands in INT8, norms folded": (True, "norms"),
}
"""`precision.attention` and `precision.smooth_alpha` of a recipe, by the form's name in the table."""
CALIBRATION_IMAGES = 32  # of noise: they change scales, not time


def main() -> None:
    """Measure every model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each model (default: 40)")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are in the table")
    parser.add_argument("models", nargs="*", default=MODELS, help="timm's names (default: those of the table)")
    arguments = parser.parse_args()
    rows = [] if arguments.fresh else read_valid_rows(TABLE, COLUMNS)
    for name in arguments.models:
        if any(row[0] == name for row in rows):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows += _measure(name, Path(folder), arguments.seconds)
        write_page(TABLE, _heading(), COLUMNS, rows)
    print(TABLE.read_text(encoding="utf-8"))


def _measure(name: str, folder: Path, seconds: float) -> list[tuple[str, ...]]:
    model = sources.load(ModelSpec(spec=f"timm:{name}", weights="random"))
    image = make_input(model.preprocess)
    calibration = save_made_up(folder / "images.npz", model.preprocess, CALIBRATION_IMAGES)
    artifacts: dict[tuple[str, str], Artifact] = {}
    for precision in PRECISIONS:
        for label, (attention, alpha) in FORMS.items():
            recipe = recipes.compose(
                f"timm:{name}", target="openvino", precision=precision, weights="random", calibration=calibration
            )
            recipe = replace(recipe, precision=replace(recipe.precision, attention=attention, smooth_alpha=alpha))
            out = folder / f"{precision}-{len(artifacts)}"
            artifacts[precision, label] = export(recipe, out, Silent()).artifact
    bench = _time([*artifacts.values()], image, seconds)
    return [*_rows(name, artifacts, bench)]


def _time(artifacts: list[Artifact], image: Array, seconds: float) -> Bench:
    with ExitStack() as stack:
        sessions = [open_session(artifact, environment.available_cores()) for artifact in artifacts]
        for session in sessions:
            stack.enter_context(session)
        return measure(sessions, [{"input": image}] * len(sessions), batch=1, seconds=seconds)


def _rows(name: str, artifacts: dict[tuple[str, str], Artifact], bench: Bench) -> Iterator[tuple[str, ...]]:
    runs = dict(zip(artifacts, bench.runs, strict=True))
    for (precision, label), artifact in artifacts.items():
        run, reference = runs[precision, label], runs[precision, "float"]
        ratio = None if run is reference else ratio_interval(reference.blocks, run.blocks)
        audit, _ = artifact.read_evidence(Audit)
        assert audit is not None
        record = artifact.manifest.quantized
        noise = "" if record is None or record.output_sqnr_db is None else f"{record.output_sqnr_db:.1f}"
        fused = f"{audit.attention.fused} of {audit.attention.sites}"
        yield name, precision, label, fused, f"{run.p50_ms:.2f}", format_ratio(ratio), noise, format_doubts(bench)


def _heading() -> list[str]:
    return [
        "# INT8 attention in OpenVINO",
        "",
        "Median latency at batch 1 of models whose linears are INT8, by what is INT8 in attention, and with scales and",
        "biases of LayerNorms folded into the linears behind them. `int8` computes the rest in float32, as on CPUs",
        "without bfloat16; `int8-bf16` in bfloat16. All forms of a model are timed in turns in one process. **×** is",
        "how many times as fast as with attention in float in the same precision, with the 95 % bootstrap interval",
        "over blocks. **outputs** is the signal to noise ratio of the graph's outputs against float32, on noise and",
        "with random weights. Made by `python -m benchmarks.int8_attention`.",
        "",
        describe_machine("torch", "timm", "openvino"),
    ]


if __name__ == "__main__":
    main()
