"""Wrong numbers of TensorRT: planted faults × models × versions, and healthy compiles, with the fake TensorRT.

    python -m tests.fakes.wrong_numbers [--healthy 100] [--precisions fp16 …] [--releases 10.3 …] [--bundles FOLDER]
    python -m tests.fakes.wrong_numbers --host [--healthy 12] [--releases 10.3 …] [--bundles FOLDER]

TensorRT itself is not here. The fake computes what an engine computes, with its roundings, and miscompiles on purpose
(tests/fakes/miscompile.py). Each fault is planted in one block in the middle of a model. It is found if `compile`
refuses the engine or doubts it; it is located if the block is named right. A healthy compile that is refused or doubted
is a false alarm, and so is a healthy engine of which `debug` names a block. With `--host` bundles with safe forms are
compiled over SSH instead (tests/remote/wrong_numbers.py).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

from tests.fakes import tensorrt as fake
from tests.fakes.fixtures import VITS
from tests.fakes.miscompile import FLOAT, HALF, Fault
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact, load
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.export import export
from vitdeploy.errors import CompileError
from vitdeploy.evidence import Located
from vitdeploy.pipeline.block_values import load_block_values, measure_noise, take_sample
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.locate import locate
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import read_bundle
from vitdeploy.targets import Target, find

RELEASES = ("10.3", "10.16", "11.4")
PRECISIONS = ("fp16", "fp32", "int8")
_BOTH = frozenset({HALF, FLOAT})


@dataclass(frozen=True)
class Case:
    """A fault in a model, and the number of the block that has it. `in_fp16`: it needs float16."""

    model: str
    fault: Fault
    block: int
    in_fp16: bool = False


CASES = (
    Case("deit", Fault("mixed_heads", within="blocks.1"), 1),
    Case("deit", Fault("overflow", within="blocks.0", size=0.3), 0, in_fp16=True),
    Case("deit", Fault("block_off", within="blocks.2"), 2),
    Case("deit", Fault("block_off", within="blocks.1", size=0.05), 1),
    Case("rope", Fault("wrong_rotation"), 0),
    Case("rope", Fault("wrong_rotation", within="blocks.1"), 1),
    Case("rope", Fault("packed_heads", within="blocks.2"), 2),
    Case("rope", Fault("overflow", within="blocks.1", size=0.3), 1, in_fp16=True),
    Case("rope", Fault("block_off", within="blocks.1", size=0.05), 1),
    Case("swin", Fault("mixed_heads", within="layers.1.blocks.0"), 2),
    Case("swin", Fault("overflow", within="layers.0.blocks.0", size=0.3), 0, in_fp16=True),
    Case("swin", Fault("block_off", within="layers.0.blocks.1"), 1),
    Case("swin", Fault("block_off", within="layers.0.blocks.1", size=0.1), 1),
    Case("detector", Fault("mixed_heads", within="model.features.1"), 1),
    Case("detector", Fault("shifted_memory", within="model.decoding.0"), 2),
    Case("detector", Fault("block_off", within="model.features.1"), 1),
    Case("detector", Fault("block_off", within="model.features.1", size=0.4), 1),
)
MILD = 0.9998
"""A fault that leaves the outputs this near is not counted on to be noticed: to FP32, or in INT8 to the graph's own."""


class Bench:
    """Bundles, each made once, and machines with a TensorRT."""

    def __init__(self, folder: Path, bundles: Path) -> None:
        from vitdeploy.targets._tensorrt import cuda

        self._folder, self._made = folder, bundles
        driver = folder / "libcuda.so.1"
        source = Path(fake.__file__).with_name("libcuda.c")
        subprocess.run(["cc", "-shared", "-fPIC", source, "-o", driver], check=True)
        self._cuda = ctypes.CDLL(str(driver))
        cuda.LIBRARY = str(driver)
        self._bundles: dict[tuple[str, str], Artifact] = {}

    def bundle(self, model: str, precision: str) -> Artifact:
        """Export a model on a machine without TensorRT."""
        key = model, precision
        if key not in self._bundles:
            sys.modules.pop("tensorrt", None)
            images = "demo:digits" if precision == "int8" else None
            recipe = recipes.compose(f"{VITS}:{model}", target="tensorrt", precision=precision, calibration=images)
            recipe = recipes.with_target_options(recipe, {"rehearsal": False})
            out = self._made / f"{model}-{precision}"
            if not out.exists():
                export(recipe, out, Silent(), cache=GraphCache())
            self._bundles[key] = load(out)
        return self._bundles[key]

    def install(self, release: str, *planted: Fault, seed: int = 0) -> Any:
        """Put a TensorRT into this machine."""
        trt = fake.module(release, self._cuda)
        trt.planted, trt.seed = [*planted], seed
        sys.modules["tensorrt"] = trt
        return trt

    def compile(self, bundle: Artifact) -> tuple[bool, float]:
        """Compile a bundle. Return whether the engine's numbers are refused or doubted, and the cosine with FP32."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            try:
                manifest = compile_bundle(bundle, Path(folder) / "out", Silent()).artifact.manifest
            except CompileError as error:
                [cosine] = re.findall(r"cosine ([\d.]+),", error.message)
                return True, float(cosine)
        assert manifest.device_parity is not None
        return any("computes other numbers" in doubt for doubt in manifest.doubts), manifest.device_parity.cosine

    def locate(self, bundle: Artifact) -> tuple[Located, float]:
        """Return the place of the error, and the cosine of the engine's outputs with those of its graph."""
        manifest = bundle.manifest
        target: Target = find(manifest.recipe.target)
        values = load_block_values(bundle.path / "reference/blocks.npz")
        assert values is not None
        example = load_examples(
            bundle.path / "reference/example.npz", manifest.preprocess, manifest.recipe.target.input
        )[0]
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            work, graph = Path(folder), read_bundle(bundle.path, manifest)
            compiled = target.compile(graph, work)
            with target.open(compiled, graph.numbers, 2) as session:
                outputs = session.run(example.feed(graph.input_name))
            located = locate(target, graph, compiled, values, example, work, Silent())
        emulated = values.emulated.get(graph.numbers.precision, values.float32)
        noises = [
            measure_noise(
                spot, emulated[spot.tensor], take_sample(spot, outputs[spot.tensor], 1, values.limit), (None, None)
            )
            for spot in values.outputs
        ]
        return located, min(noise.cosine for noise in noises if noise is not None)


def run_faults(bench: Bench, precisions: Sequence[str], releases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each fault, precision and version."""
    for precision, case in product(precisions, CASES):
        if case.in_fp16 and precision == "fp32":
            continue
        for release in releases:
            bundle = bench.bundle(case.model, precision)
            trt = bench.install(release, case.fault)
            noticed, cosine = bench.compile(bundle)
            assert trt.struck[0], f"{case} strikes nothing in {precision}"
            located, of_graph = bench.locate(bundle)
            yield {
                "model": case.model, "fault": case.fault.name, "size": case.fault.size, "precision": precision,
                "release": release, "cosine": round(of_graph if precision == "int8" else cosine, 6), "noticed": noticed,
                "located": located.number == case.block, "block": located.block, "group": located.group,
            }  # fmt: skip


def run_healthy(bench: Bench, count: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each healthy compile, all models, precisions and versions in turns."""
    models = sorted({case.model for case in CASES})
    turns = ((seed, *each) for seed in range(count) for each in product(models, PRECISIONS, RELEASES))
    for seed, model, precision, release in islice(turns, count):
        bundle = bench.bundle(model, precision)
        bench.install(release, seed=seed + 1)
        (alarm, _), (located, _) = bench.compile(bundle), bench.locate(bundle)
        yield {
            "model": model, "precision": precision, "release": release, "seed": seed, "alarm": alarm,
            "named": located.block,
        }  # fmt: skip


def main() -> None:
    """Run both, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", action="store_true", help="compile on a board behind an sshd")
    parser.add_argument("--healthy", type=int, help="healthy compiles; default: 100, and 12 with --host")
    parser.add_argument("--precisions", nargs="*", default=PRECISIONS, help="of the faults")
    parser.add_argument("--releases", nargs="*", default=RELEASES, help="of the faults")
    parser.add_argument("--bundles", type=Path, help="reuse bundles of an earlier run")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    if given.host:
        from tests.remote.wrong_numbers import run_all

        result = run_all(given.bundles, given.releases, 12 if given.healthy is None else given.healthy, _print)
    else:
        result = _run_here(given)
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


def _run_here(given: argparse.Namespace) -> dict[str, Any]:
    count = 100 if given.healthy is None else given.healthy
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.bundles or Path(folder))
        healthy = [*map(_print, run_healthy(bench, count))]
        rows = [*map(_print, run_faults(bench, given.precisions, given.releases))]
    for precision in PRECISIONS:
        for title, mild in (("", False), ("mild ", True)):
            of = [row for row in rows if row["precision"] == precision and (row["cosine"] > MILD) is mild]
            noticed, located = (sum(row[key] for row in of) for key in ("noticed", "located"))
            print(f"{precision}: of {len(of)} {title}faults {noticed} noticed, {located} located in their block")
    alarms, named = sum(row["alarm"] for row in healthy), sum(row["named"] is not None for row in healthy)
    print(f"healthy: {alarms} false alarms and {named} blocks named in {len(healthy)} compiles")
    return {"faults": rows, "healthy": healthy}


def _print(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
