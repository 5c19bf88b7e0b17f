"""What TensorRT-RTX makes of four models without a GPU: fusion, precision, kernels, build time, and whether it repeats.

    python -m benchmarks.rtx_engines

Each model is exported in FP16 and in INT8 (random weights, 8 made-up images for the ranges, no search, so accuracy
means nothing here), and each bundle is built twice for SM86 and for SM89. Everything in the table is read back from the
engines' layer plans; "same plan" compares the two builds' plans line by line. Q, K and V are three linears, and one
product where the compiler merges them. Writes benchmarks/tensorrt_rtx.md.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vitdeploy import artifact as artifacts
from vitdeploy import environment, targets
from vitdeploy.commands.export import export
from vitdeploy.data.synthetic import natural_image
from vitdeploy.evidence import Audit
from vitdeploy.progress import Silent
from vitdeploy.recipe import Preprocess, Recipe, TargetSpec
from vitdeploy.runtime.artifact_session import target_bundle
from vitdeploy.targets._tensorrt.layers import LAYERS
from vitdeploy.targets._tensorrt.record import load_record

MODELS = {
    "DeiT-Tiny": ("timm:deit_tiny_patch16_224", 224),
    "ViT-Base": ("timm:vit_base_patch16_224", 224),
    "Swin-Tiny": ("timm:swin_tiny_patch4_window7_224", 224),
    "DPT (small backbone, 384 px)": (f"python:{Path(__file__)}:dpt", 384),
}
GENERATIONS = ("sm86", "sm89")
CALIBRATION_IMAGES = 8
TABLE = Path(__file__).with_name("tensorrt_rtx.md")
# TensorRT's compiler numbers the values that it makes up; the numbers differ from build to build, the plan does not.
_MADE_UP = re.compile(r"__mye\d+")


def dpt() -> Any:
    """Hugging Face's DPT on a backbone of ViT-Small's size, from its configuration."""
    from transformers import DPTConfig, DPTForDepthEstimation

    from benchmarks.zoo.models import Tensors

    sizes = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_hidden_layers": 12}
    return Tensors(DPTForDepthEstimation(DPTConfig(image_size=384, backbone_out_indices=[2, 5, 8, 11], **sizes)))


def main() -> None:
    """Build everything and write the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="models whose name contains this")
    only = parser.parse_args().only
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        images = _images(Path(folder) / "images")
        for name, (spec, size) in MODELS.items():
            if only not in name:
                continue
            for precision in ("fp16", "int8"):
                for row in _rows(name, spec, size, precision, images, Path(folder)):
                    rows.append(row)
                    print(row, flush=True)
                    TABLE.write_text(_table(rows), encoding="utf-8")


def _images(folder: Path) -> str:
    folder.mkdir()
    for seed in range(CALIBRATION_IMAGES):
        pixels = natural_image(seed, Preprocess(size=(384, 384)), 1)[0].transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return str(folder)


def _rows(name: str, spec: str, size: int, precision: str, images: str, folder: Path) -> Iterator[str]:
    out = folder / f"{name}-{precision}"
    raw = {
        "model": {"spec": spec, **({"weights": "random"} if spec.startswith("timm:") else {})},
        "preprocess": {"size": [size, size]},
        "target": {"kind": "tensorrt-rtx"},
        "precision": {"kind": precision, "smooth_alpha": "off"},
        "data": {"calibration": images},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(Recipe.model_validate(raw), out, Silent())
    bundle = target_bundle(out, artifacts.load(out).manifest)
    for generation in GENERATIONS:
        target = targets.find(TargetSpec(kind="tensorrt-rtx", device=generation))
        plans, seconds = [], []
        for turn in range(2):
            workdir = out / f"{generation}-{turn}"
            workdir.mkdir()
            made = target.compile(bundle, workdir)
            plans.append(_MADE_UP.sub("", (workdir / LAYERS).read_text(encoding="utf-8")))
            seconds.append(load_record(workdir).build_seconds)
        yield _row(name, precision, generation, target.audit(bundle, made), seconds, same=plans[0] == plans[1])


def _row(name: str, precision: str, generation: str, audit: Audit, seconds: list[float], *, same: bool) -> str:
    attention, engine = audit.attention, audit.engine
    assert engine is not None
    linears = ", ".join(f"{count} {kind}" for kind, count in audit.linears.model_dump().items() if count)
    products = ", ".join(f"{count} {kind}" for kind, count in engine.gemms.items())
    cells = (
        name, precision, generation, f"{attention.fused} of {attention.sites}", linears, engine.kernels, products,
        engine.reformats, engine.casts, f"{max(seconds):.1f}", "yes" if same else "NO",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _table(rows: list[str]) -> str:
    host = environment.host()
    versions = environment.library_versions()
    head = (
        "| model | precision | for | attention fused | linears | kernels | products | only copy | only cast "
        "| slower build, s | same plan |"
    )
    return "\n".join([
        "# Engines of TensorRT-RTX, compiled without a GPU",
        "",
        *__doc__.strip().splitlines()[4:],
        "",
        f"tensorrt-rtx {versions['tensorrt-rtx']}, torch {versions['torch']}, timm {versions['timm']}, transformers "
        f"{versions['transformers']}, on {host.cores} cores of {host.cpu}. Nothing here ran on a GPU.",
        "",
        head,
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
