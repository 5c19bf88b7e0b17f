"""The size of a bundle for TensorRT with variants and safe forms, against one with a single graph.

    python -m benchmarks.bundles

Exports ViT-Base (timm's vit_base_patch16_224, random weights) for TensorRT twice: in FP16 alone, and with FP16, INT8
and the safe forms of FP16. Each is one `vitdeploy export` in a process and with a cache of its own, so that both pay
for PyTorch's export. Writes benchmarks/bundles.md, and fails if the second bundle is too large.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.images import save_made_up
from benchmarks.tables import describe_machine, format_table, write_page
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import BLOCKS, JUDGE, MANIFEST, WEIGHTS, variant_graph
from vitdeploy.recipe import Preprocess

MODEL = "timm:vit_base_patch16_224"
TABLE = Path(__file__).with_suffix(".md")
CALIBRATION_IMAGES = 128
MOST_TIMES = 1.6
"""The limit for the bytes of the bundle with variants, relative to the plain one, without what is counted `APART`."""
BUNDLES: Mapping[str, tuple[str, ...]] = {
    "FP16": ("--precision", "fp16"),
    "FP16, INT8, safe forms": ("--precision", "fp16,int8"),
}
WEIGHTS_KIND, GRAPHS, BLOCKS_KIND, JUDGE_KIND, REST = "weights", "graphs", "values inside", "judge data", "the rest"
KINDS = (WEIGHTS_KIND, GRAPHS, BLOCKS_KIND, JUDGE_KIND, REST)
APART = (BLOCKS_KIND, JUDGE_KIND)
COLUMNS = ("bundle", *(f"{kind}, MB" for kind in KINDS), f"without {' and '.join(APART)}, MB", "times", "export, s")


@dataclass(frozen=True)
class Exported:
    """A bundle, and the time that its export took.

    Attributes:
        sizes: the bytes of its files, by kind.
        seconds: of the whole command.
        graphs: the bytes of each variant's graph without its weights, by the name of the variant.
    """

    sizes: Mapping[str, int]
    seconds: float
    graphs: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes without what grows with the images and not with the variants."""
        return sum(size for kind, size in self.sizes.items() if kind not in APART)


def main() -> None:
    """Export both, write the page, and compare their sizes."""
    bundles: dict[str, Exported] = {}
    with tempfile.TemporaryDirectory(prefix="vitdeploy-bundles-") as folder:
        images = save_made_up(Path(folder) / "images.npz", Preprocess(size=(224, 224)), CALIBRATION_IMAGES)
        for number, (name, flags) in enumerate(BUNDLES.items()):
            bundles[name] = export(Path(folder) / str(number), *flags, "--calibration", images)
    plain, full = bundles.values()
    rows = [make_row(name, bundle, plain) for name, bundle in bundles.items()]
    write_page(TABLE, heading(full), COLUMNS, rows)
    print(TABLE.read_text(encoding="utf-8"))
    if full.total > MOST_TIMES * plain.total:
        sys.exit(f"the bundle with variants takes more than {MOST_TIMES} times the bytes of the plain one")


def export(work: Path, *flags: str) -> Exported:
    """Export the model with these flags, with a cache in `work`, and measure the bundle."""
    work.mkdir()
    out = work / "bundle"
    words = ["export", MODEL, "--weights", "random", "--target", "tensorrt", "--option", "rehearsal=false", *flags]
    command = [sys.executable, "-m", "vitdeploy", *words, "-o", str(out), "--quiet"]
    started = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, "XDG_CACHE_HOME": str(work / "cache")})
    seconds = time.monotonic() - started
    bundle = artifacts.load(out)
    variants = (variant for variant in bundle.manifest.variants if not variant.graph)
    graphs = {one.name: (out / variant_graph(one.name)).stat().st_size for one in variants}
    return Exported(measure_sizes(bundle), seconds, graphs)


def measure_sizes(bundle: Artifact) -> dict[str, int]:
    """Return the bytes of a bundle's files by kind; `manifest.json`, which names them, is of the rest."""
    sizes = Counter(dict.fromkeys(KINDS, 0))
    for entry in bundle.manifest.files:
        sizes[kind_of(entry.path)] += entry.bytes
    sizes[REST] += (bundle.path / MANIFEST).stat().st_size
    return dict(sizes)


def kind_of(path: str) -> str:
    """Return the kind of a file of a bundle."""
    if path in _KINDS:
        return _KINDS[path]
    return GRAPHS if path.endswith(".onnx") else REST


_KINDS = {WEIGHTS: WEIGHTS_KIND, BLOCKS: BLOCKS_KIND, JUDGE: JUDGE_KIND}


def make_row(name: str, bundle: Exported, plain: Exported) -> tuple[str, ...]:
    """Return the cells of a bundle's row."""
    sizes = [f"{bundle.sizes[kind] / 1e6:.2f}" if bundle.sizes[kind] else "" for kind in KINDS]
    times = f"{bundle.total / plain.total:.3f}"
    return name, *sizes, f"{bundle.total / 1e6:.2f}", times, f"{bundle.seconds:.0f}"


def heading(full: Exported) -> list[str]:
    """Return the lines above the table of bundles, with the table of the graphs of the larger one."""
    graphs = [(name, f"{size / 1e3:.0f}") for name, size in full.graphs.items()]
    return [
        "# Bundles with variants, in bytes",
        "",
        "ViT-Base at 224 × 224 with random weights, exported for TensorRT by the command line: once in FP16 alone, and",
        f"once with FP16, INT8 (ranges from {CALIBRATION_IMAGES} images) and the",
        "[safe forms](../docs/compatibility.md#safe-forms) of FP16. Each export has a process and an empty cache of",
        "its own, and no rehearsal. The sizes are those of the files. **times** is relative to FP16 alone, without the",
        "values inside and the judge data. **export** is the whole command on this machine, which did other work",
        "meanwhile.",
        "",
        "All variants share the file of weights, in which equal bytes are stored once. A bundle without variants has",
        "its weights in its graph. The values inside are samples for one example, at most 16 MB. A model with random",
        "weights has no judge data, because there is nothing to judge. With trained weights these are up to 256",
        "images, as bytes at the model's size, with FP32's outputs, at most 64 MiB: for this model 256 × 3 × 224 × 224",
        "bytes = 38.5 MB, and the outputs.",
        "",
        "The graphs, without weights of 1 kB and more, in kB; levels of optimization have none of their own:",
        "",
        *format_table(("variant", "graph, kB"), graphs),
        "",
        describe_machine("torch", "timm", "onnx") + " Made by",
        "`python -m benchmarks.bundles`.",
    ]


if __name__ == "__main__":
    main()
