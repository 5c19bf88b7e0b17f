"""Nothing expensive is done twice: compiling, exporting, loading the model. `test_main_job` counts for `run`."""

from __future__ import annotations

from pathlib import Path

from tests.counting import Counts, counts, key_of_graph
from vitdeploy import recipe as recipes
from vitdeploy.commands.debug import debug
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect.sensitivity import measure_sensitivity
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.precision import kind_of
from vitdeploy.progress import Silent

__all__ = ["counts"]


def test_export_compiles_the_kept_graph_once_and_the_reference_once(counts: Counts, tmp_path: Path) -> None:
    recipe = recipes.compose("demo:digits", target="openvino", precision="int8")
    result = export(recipe, tmp_path / "digits", Silent())
    assert counts.compiled.pop(key_of_graph(result.artifact)) == 1, "the audit reads what was compiled"
    assert list(counts.compiled.values()) == [1], "float32, to compare the speed with"
    assert counts.opened == 3, "each side of that comparison; and the artifact, to compare its numbers with FP32"
    assert (counts.exported, counts.loaded) == (1, 1)


def test_auto_compiles_every_candidate_once(counts: Counts, tmp_path: Path) -> None:
    recipe = recipes.compose("demo:digits", target="openvino", precision="auto")
    result = export(recipe, tmp_path / "digits", Silent())
    assert len(counts.compiled) > 3
    # Dynamic quantization is looked at with and without, and may be the fastest.
    is_dynamic = kind_of(result.artifact.manifest.target.precision).numbers.dynamic
    assert counts.compiled.pop(key_of_graph(result.artifact)) == (2 if is_dynamic else 1)
    assert sorted(counts.compiled.values())[:-1] == [1] * (len(counts.compiled) - 1)
    assert max(counts.compiled.values()) <= (1 if is_dynamic else 2)
    assert (counts.exported, counts.loaded) == (1, 1)


def test_commands_that_need_the_float32_graph_find_it_in_the_cache(counts: Counts, tmp_path: Path) -> None:
    cache = GraphCache(tmp_path / "cache")
    recipe = recipes.compose("demo:digits", target="openvino", precision="int8")
    artifact = export(recipe, tmp_path / "digits", Silent(), cache=cache).artifact
    debug(artifact, "demo:digits", Silent(), images=1, cache=cache)
    measure_sensitivity(artifact, "demo:digits", Silent(), cache=cache)
    assert counts.exported == 1
    debug(artifact, "demo:digits", Silent(), images=1)
    assert counts.exported == 2, "without a cache the model is exported again"
