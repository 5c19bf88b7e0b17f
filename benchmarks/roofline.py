"""Show how near DeiT-Tiny and ViT-Base come to the measured peak of this machine, and where the rest of the time goes.

    python -m benchmarks.roofline [--seconds S]

Each model is exported at batch 1 and 8 for OpenVINO and ONNX Runtime, in FP32 and in INT8 (random weights: neither
speed nor work depends on them). Then `vitdeploy bench --profile` times the four beside PyTorch. Everything in the table
comes from the evidence that it stores. Writes benchmarks/roofline.md.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from benchmarks.images import save_crops
from benchmarks.tables import describe_machine, format_doubts, read_valid_rows, write_page
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench.bench import Plan, bench
from vitdeploy.commands.export import export
from vitdeploy.evidence import Bench, Profile, Run
from vitdeploy.frozen import replace
from vitdeploy.measure.profiling import ROLES
from vitdeploy.progress import Silent

MODELS = ("deit_tiny_patch16_224", "vit_base_patch16_224")
BATCHES = (1, 8)
WAYS = tuple((target, precision) for precision in ("fp32", "int8") for target in ("openvino", "onnxruntime"))
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = (
    "model", "batch", "engine", "p50 (ms)", "GFLOP an image", "floor (ms)", "efficiency", "peak FP32 / INT8 (GOP/s)",
    *(f"{role} %" for role in ROLES), "between operators %", "measurement",
)  # fmt: skip


def main() -> None:
    """Measure every model and batch that the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each model and batch (default: 20)")
    seconds = parser.parse_args().seconds
    rows = read_valid_rows(TABLE, COLUMNS)
    for name in MODELS:
        for batch in BATCHES:
            if (name, str(batch)) in {row[:2] for row in rows}:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new = list(_rows(name, batch, _measure(name, batch, seconds)))
            for row in new:
                print(*row, sep=" | ", flush=True)
            rows += new
            write_page(TABLE, _heading(), COLUMNS, rows)


def _measure(name: str, batch: int, seconds: float) -> Bench:
    artifacts: list[Artifact] = []
    with tempfile.TemporaryDirectory() as folder:
        images = save_crops(Path(folder) / "images", max(BATCHES))
        for target, precision in WAYS:
            recipe = recipes.compose(
                f"timm:{name}", target=target, precision=precision, weights="random", batch=batch,
                calibration=None if precision == "fp32" else images,
            )  # fmt: skip
            # No search for the best migration: it moves outliers, which changes no time.
            recipe = replace(recipe, precision=replace(recipe.precision, smooth_alpha="off"))
            artifacts.append(export(recipe, Path(folder) / f"{target}-{precision}", Silent()).artifact)
        return bench(artifacts, Silent(), Plan(seconds=seconds, profile=True))


def _rows(name: str, batch: int, measured: Bench) -> Iterator[tuple[str, ...]]:
    roofline = measured.roofline
    assert roofline is not None
    peaks = " / ".join(f"{roofline.peaks[kind].gops:.0f}" for kind in ("fp32", "int8"))
    work = sum(roofline.operations.values()) / 1e9
    profiles = {profile.name: profile for profile in measured.profiles}
    for run in measured.runs:
        yield (
            name, str(batch), run.name, f"{run.p50_ms:.2f}", f"{work:.2f}", *_efficiency(run), peaks,
            *_shares(profiles.get(run.name)), format_doubts(measured),
        )  # fmt: skip


def _efficiency(run: Run) -> tuple[str, str]:
    if run.floor_ms is None or run.efficiency_pct is None:
        return "", ""
    return f"{run.floor_ms:.2f}", f"{run.efficiency_pct:.0f} %"


def _shares(profile: Profile | None) -> tuple[str, ...]:
    if profile is None:
        return ("",) * (len(ROLES) + 1)
    times = (*(profile.roles[role] for role in ROLES), profile.between_ms)
    return tuple(f"{100 * ms / profile.total_ms:.1f}" for ms in times)


def _heading() -> list[str]:
    return [
        "# Roofline",
        "",
        "`floor`: the time that the model's products take if each runs at the highest rate that was measured here for",
        "a large product in its precision. `efficiency`: floor over median latency. The other",
        "shares are of the wall time of a run with the engine's counters on. `between operators`: the time that no",
        "operator's counter shows, in which the engine passes inputs and outputs and starts the next kernel. Made by",
        "`python -m benchmarks.roofline`.",
        "",
        describe_machine("timm", "torch", "openvino", "onnxruntime"),
    ]


if __name__ == "__main__":
    main()
