"""Show what TensorRT-RTX compiles from four models without a GPU: fusion, precision, kernels and build time.

    python -m benchmarks.rtx_engines [--only NAME]

Each model is exported in FP16 and in INT8, and each bundle is built twice for each generation of GPUs. Everything in
the table is read back from the layer plans of the engines. Writes benchmarks/tensorrt_rtx.md.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.images import save_made_up
from benchmarks.tables import describe_machine, write_page
from vitdeploy import targets
from vitdeploy.commands.export import export
from vitdeploy.evidence import Audit
from vitdeploy.progress import Silent
from vitdeploy.recipe import Preprocess, Recipe, TargetSpec
from vitdeploy.runtime.artifact_session import read_bundle
from vitdeploy.targets._tensorrt.layers import LAYERS
from vitdeploy.targets._tensorrt.record import load_record

MODELS = {
    "DeiT-Tiny": ("timm:deit_tiny_patch16_224", 224),
    "ViT-Base": ("timm:vit_base_patch16_224", 224),
    "Swin-Tiny": ("timm:swin_tiny_patch4_window7_224", 224),
    "DPT (small backbone, 384 px)": (f"python:{Path(__file__)}:dpt", 384),
}
"""MODEL of the command line, and the size of its square images."""
PRECISIONS = ("fp16", "int8")
GENERATIONS = ("sm86", "sm89")
BUILDS = 2
CALIBRATION_IMAGES = 8
TABLE = Path(__file__).with_name("tensorrt_rtx.md")
COLUMNS = (
    "model", "precision", "for", "attention fused", "linears", "kernels", "products", "only copy", "only cast",
    "slower build, s", "same plan",
)  # fmt: skip
# TensorRT's compiler numbers the values that it adds. The numbers differ from build to build, the plan does not.
_ADDED_VALUE = re.compile(r"__mye\d+")


def dpt() -> Any:
    """Return Hugging Face's DPT with random weights, on a backbone of ViT-Small's size."""
    from transformers import DPTConfig, DPTForDepthEstimation

    from benchmarks.zoo.hf_models import Tensors

    settings: dict[str, Any] = {
        "image_size": 384, "backbone_out_indices": [2, 5, 8, 11], "hidden_size": 384, "num_attention_heads": 6,
        "intermediate_size": 1536, "num_hidden_layers": 12,
    }  # fmt: skip
    return Tensors(DPTForDepthEstimation(DPTConfig(**settings)))


def main() -> None:
    """Build everything, and write the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="NAME", help="only models whose name contains this")
    only = parser.parse_args().only
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        images = save_made_up(Path(folder) / "images.npz", Preprocess(size=(384, 384)), CALIBRATION_IMAGES)
        for name, (spec, size) in MODELS.items():
            if only not in name:
                continue
            for precision in PRECISIONS:
                for row in _rows(name, _recipe(spec, size, precision, images), Path(folder) / f"{name}-{precision}"):
                    rows.append(row)
                    print(*row, sep=" | ", flush=True)
                    write_page(TABLE, _heading(), COLUMNS, rows)


def _recipe(spec: str, size: int, precision: str, images: str) -> Recipe:
    raw = {
        "model": {"spec": spec, **({"weights": "random"} if spec.startswith("timm:") else {})},
        "preprocess": {"size": [size, size]},
        "target": {"kind": "tensorrt-rtx"},
        "precision": {"kind": precision, "smooth_alpha": "off"},
        "data": {"calibration": images},
    }
    return Recipe.model_validate(raw)


def _rows(name: str, recipe: Recipe, out: Path) -> Iterator[tuple[str, ...]]:
    """Export a bundle, and build it for every generation of GPUs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        artifact = export(recipe, out, Silent()).artifact
    bundle = read_bundle(out, artifact.manifest)
    for generation in GENERATIONS:
        target = targets.find(TargetSpec(kind="tensorrt-rtx", device=generation))
        plans, seconds = [], []
        for build in range(BUILDS):
            workdir = out / f"{generation}-{build}"
            workdir.mkdir()
            compiled = target.compile(bundle, workdir)
            plans.append(_ADDED_VALUE.sub("", (workdir / LAYERS).read_text(encoding="utf-8")))
            seconds.append(load_record(workdir).build_seconds)
        cells = _audit_cells(target.audit(bundle, compiled))
        same = "yes" if len(set(plans)) == 1 else "NO"
        yield name, artifact.manifest.target.precision, generation, *cells, f"{max(seconds):.1f}", same


def _audit_cells(audit: Audit) -> tuple[str, ...]:
    attention, engine = audit.attention, audit.engine
    assert engine is not None
    linears = ", ".join(f"{count} {kind}" for kind, count in audit.linears.model_dump().items() if count)
    products = ", ".join(f"{count} {kind}" for kind, count in engine.gemms.items())
    fused = f"{attention.fused} of {attention.sites}"
    return fused, linears, str(engine.kernels), products, str(engine.reformats), str(engine.casts)


def _heading() -> list[str]:
    return [
        "# Engines of TensorRT-RTX, compiled without a GPU",
        "",
        "Each model is exported in FP16 and in INT8 with random weights. The ranges come from 8 made-up images without",
        "a search, so accuracy means nothing here. Each bundle is built twice for SM86 and for SM89. Everything is",
        "read back from the layer plans of the engines. `linears`: the precision in which their kernels multiply.",
        "`products`: the kernels that multiply; Q, K and V are three linears, and one product where the compiler",
        "merges them. `only copy` and `only cast`: kernels that do nothing else. `same plan`: whether the plans of the",
        "two builds are equal, line by line. Made by `python -m benchmarks.rtx_engines`.",
        "",
        f"{describe_machine('tensorrt-rtx', 'torch', 'timm', 'transformers')} Nothing here ran on a GPU.",
    ]


if __name__ == "__main__":
    main()
