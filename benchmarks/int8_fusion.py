"""Check that attention stays fused when the linears are INT8 or FP8, by what was compiled.

    python -m benchmarks.int8_fusion [--fresh]

Exports four families of models in five ways each with `vitdeploy`: timm's architectures with random weights (fusion
does not depend on them), calibrated on crops of the two photographs that scikit-learn ships. Writes
benchmarks/int8_fusion.md. Rows that are in it already are kept, unless --fresh is given.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.images import save_crops
from benchmarks.tables import describe_machine, read_rows, write_page
from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import QuantizeError
from vitdeploy.evidence import Audit
from vitdeploy.frozen import replace
from vitdeploy.progress import Silent

MODELS = {
    "deit_tiny_patch16_224": None,
    "swin_tiny_patch4_window7_224": None,
    "vit_base_patch16_224": None,
    "vit_small_patch14_dinov2": "518",
}
"""timm's name, and the image size where it is not the model's own."""
WAYS = (
    ("openvino", None, "int8", False),
    ("onnxruntime", None, "int8", False),
    ("tensorrt-rtx", "sm86", "int8", False),
    ("tensorrt-rtx", "sm86", "int8", True),
    ("tensorrt-rtx", "sm89", "fp8", False),
)
"""Target, device, precision, and whether attention is INT8 as well."""
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("model", "target", "attention fused", "linears", "kernels of the attention", "exceptions", "s")


def main() -> None:
    """Export, read back, and write the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the table has already")
    rows = [] if parser.parse_args().fresh else read_rows(TABLE, COLUMNS)
    for name in MODELS:
        for way in WAYS:
            if (name, _title(*way)) not in {row[:2] for row in rows}:
                rows.append(make_row(name, *way))
                print(*rows[-1], sep=" | ", flush=True)
                write_page(TABLE, _heading(), COLUMNS, rows)


def make_row(name: str, target: str, device: str | None, precision: str, attention: bool) -> tuple[str, ...]:
    """Export a model for a target; return what its compiled form shows, or why it was refused."""
    title, started = _title(target, device, precision, attention), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipes.compose(
            f"timm:{name}", target=target, device=device, precision=precision, weights="random",
            calibration=save_crops(Path(folder) / "images"), image_size=MODELS[name],
        )  # fmt: skip
        recipe = replace(recipe, precision=replace(recipe.precision, attention=attention))
        try:
            audit = inspect(export(recipe, Path(folder) / "out", Silent()).artifact)
        except QuantizeError as error:
            return name, title, "", "", "", f"refused: {error.message}", ""
    seconds = time.monotonic() - started
    fused = f"{audit.attention.fused}/{audit.attention.sites}"
    kernels = ", ".join(sorted({re.sub(r"_?\d+$|_0x.*", "", k) for k in audit.attention.kernels.values()}))
    linears = ", ".join(f"{n} {kind}" for kind, n in audit.linears.model_dump().items() if n)
    return name, title, fused, linears, kernels, "; ".join(_exceptions(audit)), f"{seconds:.0f}"


def _title(target: str, device: str | None, precision: str, attention: bool) -> str:
    return " ".join(part for part in (target, device, precision) if part) + (", attention too" if attention else "")


def _exceptions(audit: Audit) -> Iterator[str]:
    """Yield why sites are not fused, each reason once, and the linears in another precision than asked for."""
    for reason, n in Counter(re.sub(r": .*", "", u.reason) for u in audit.attention.unfused).items():
        yield f"{n} unfused: {reason}"
    others: dict[str, list[str]] = {}
    for name, precision in audit.layers.items():
        if precision != audit.precision:
            others.setdefault(precision, []).append(name)
    for precision, names in others.items():
        yield f"{precision}: {', '.join(names)}"


def _heading() -> list[str]:
    return [
        "# Attention after INT8 and FP8",
        "",
        "What `vitdeploy export --weights random` compiled, read back from OpenVINO's runtime model, ONNX Runtime's",
        "profile and TensorRT-RTX's layer plan. `attention fused`: attentions that run as one kernel. `linears`: the",
        "precision in which their kernels multiply, with the patch embedding. `exceptions`: what is not fused, and",
        "what multiplies in another precision. `s`: seconds for all of it. Made by `python -m benchmarks.int8_fusion`.",
        "",
        describe_machine("timm", "onnxruntime", "openvino", "tensorrt-rtx"),
    ]


if __name__ == "__main__":
    main()
