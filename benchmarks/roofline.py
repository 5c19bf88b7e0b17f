"""How near the measured peak of this machine do DeiT-Tiny and ViT-Base come, and where does the rest of the time go?

    python -m benchmarks.roofline [--seconds S]

Each model is exported at batch 1 and 8 for OpenVINO and ONNX Runtime, in FP32 and in INT8 (random weights: neither
speed nor work depends on them), then `vitdeploy bench --profile` times the four beside PyTorch. Everything in the
tables is read from the evidence that it stores. Writes benchmarks/roofline.md.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from benchmarks.int8_fusion import save_crops
from benchmarks.tables import machine, rows_of, table
from vitdeploy import recipe as recipes
from vitdeploy.commands.bench import bench as benching
from vitdeploy.commands.export import export
from vitdeploy.evidence import Bench, Profile, Run
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
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each model and batch (default: 20)")
    seconds = parser.parse_args().seconds
    rows = rows_of(TABLE, COLUMNS)
    for name in MODELS:
        for batch in BATCHES:
            if (name, str(batch)) in {row[:2] for row in rows}:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows += _rows(name, batch, _measured(name, batch, seconds))
            for row in rows[-len(WAYS) - 1 :]:
                print(*row, sep=" | ", flush=True)
            TABLE.write_text("\n".join([*_heading(), "", *table(COLUMNS, rows), ""]), encoding="utf-8")


def _measured(name: str, batch: int, seconds: float) -> Bench:
    with tempfile.TemporaryDirectory() as folder:
        images, paths = Path(folder) / "images", []
        save_crops(images, max(BATCHES))
        for target, precision in WAYS:
            recipe = recipes.compose(
                f"timm:{name}", target=target, precision=precision, weights="random", batch=batch,
                calibration=None if precision == "fp32" else str(images),
            )  # fmt: skip
            paths.append(Path(folder) / f"{target}-{precision}")
            # Nothing is searched: where outliers go changes no time.
            asked = recipe.precision.model_copy(update={"smooth_alpha": "off"})
            export(recipe.model_copy(update={"precision": asked}), paths[-1], Silent())
        return benching.bench(paths, Silent(), benching.Plan(seconds=seconds, profile=True))


def _rows(name: str, batch: int, found: Bench) -> Iterator[tuple[str, ...]]:
    assert found.roofline is not None
    peaks = " / ".join(f"{found.roofline.peaks[kind].gops:.0f}" for kind in ("fp32", "int8"))
    work = sum(found.roofline.operations.values()) / 1e9
    profiles = {profile.name: profile for profile in found.profiles}
    for run in found.runs:
        yield (
            name, str(batch), run.name, f"{run.p50_ms:.2f}", f"{work:.2f}", *_efficiency(run), peaks,
            *_shares(profiles.get(run.name)), "; ".join(found.doubts)[:120] or "valid",
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
        "`floor`: the products of the model, each at the highest rate that was measured here for a large product in",
        "its precision (attention in FP32). `efficiency`: floor over median latency. The shares are of the wall time",
        "of a run with the engine's counters on; `between operators` is what no operator's counter holds: inputs and",
        "outputs handed over, the next kernel started. Made by `python -m benchmarks.roofline`.",
        "",
        machine("timm", "torch", "openvino", "onnxruntime"),
    ]


if __name__ == "__main__":
    main()
