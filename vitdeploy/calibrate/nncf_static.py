"""INT8 linears by NNCF: its ranges, SmoothQuant and bias correction, where vitdeploy's rules allow INT8."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitdeploy.artifact.manifest import FLOAT, Placement
from vitdeploy.artifact.quantization import Migration, Quantization, SearchStep
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.weight_range import FULL_RANGE, largest_weight, weight_bits
from vitdeploy.calibrate.writers import node_names
from vitdeploy.graph.dialect import Dialect, Numbers
from vitdeploy.graph.structure import Linear
from vitdeploy.recipe import NNCF

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.nncf_process import StaticSettings

Strengths = tuple[float | None, ...]
"""Strengths of SmoothQuant; None: off."""
NNCF_ALPHAS: Strengths = (0.95, 0.5, None)
"""The strengths of SmoothQuant that are tried. The first is NNCF's default."""

_LEAST_GAIN_DB = 0.1
"""A smaller gain over NNCF's default is noise."""
_LEFT = "NNCF left it in float"
_OPERANDS = {"q": ("qk", 0), "k": ("qk", 1), "the probabilities": ("pv", 0), "v": ("pv", 1)}


class NNCFRun(NamedTuple):
    """A graph with NNCF's pairs, the strength of SmoothQuant, and every strength that was tried."""

    graph: Graph
    alpha: float | None
    tried: tuple[SearchStep, ...]


def quantize_static(
    calibrated: CalibratedGraph,
    dialect: Dialect,
    numbers: Numbers,
    alphas: Strengths,
    selection: tuple[list[Linear], dict[str, str]],
    *,
    float_decoder: bool,
) -> Quantized:
    """Put NNCF's Q/DQ pairs on the selected linears; and on attention that then stays one kernel.

    Attention stays in float where the rest computes in bfloat16, which is as fast (benchmarks/int8_forms.md).

    Args:
        calibrated: with real images.
        dialect: of the compiler.
        numbers: of the precision.
        alphas: strengths of SmoothQuant; the one that changes the outputs least is taken.
        selection: the linears to quantize, and the rule for each other one.
        float_decoder: leave the attention of a detector's decoder in float, as its linears.

    Raises:
        QuantizeError: NNCF is not installed, or fails on this graph.
    """
    from vitdeploy.graph.model import Graph
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.nncf_pairs import count_smoothed, drop_pairs_elsewhere, has_pair
    from vitdeploy.quantize.placement import record_placement, regions_in_float

    linears, rules = selection
    names = node_names(linears)
    in_float = regions_in_float(calibrated.structure) if float_decoder else {}
    run = _run_once(calibrated, dialect, names, alphas, in_float)
    graph = Graph(run.graph.model.clone())
    if numbers.rest == "bf16":
        drop_pairs_elsewhere(graph, names)
    nodes = {node.name or "": node for node in graph.nodes}
    written = {name for name in names if name in nodes and has_pair(nodes[name], 0) and has_pair(nodes[name], 1)}
    rules = {**rules, **{one.name: _LEFT for one in linears if not written.issuperset(one.nodes)}}
    symmetric = dialect.activation_codes == "int8"
    record = Quantization(
        quantizer=NNCF,
        method="static Q/DQ",
        activations="int8, symmetric, per tensor" if symmetric else "uint8, per tensor",
        weight_bits=weight_bits(FULL_RANGE if symmetric else largest_weight(dialect)),
        quantized=len(linears) - sum(rule == _LEFT for rule in rules.values()),
        migration=None if run.alpha is None else Migration(alpha=run.alpha, inputs=count_smoothed(graph)),
        ranges="minmax",
        bias_correction=True,
        output_sqnr_db=_finite(calibrated.judge.sqnr_db(graph)),
        tried=run.tried,
        calibration=calibrated.require_images().data,
    )
    placement = record_placement(calibrated.structure, rules, numbers.weights, dialect)
    for site in calibrated.structure.attention:
        core = next((name for name in site.nodes if f"{name}/qk" in nodes and f"{name}/pv" in nodes), None)
        operands = {label: (nodes[f"{core}/{part}"], i) for label, (part, i) in _OPERANDS.items() if core is not None}
        int8 = [label for label, (node, index) in operands.items() if has_pair(node, index)]
        if int8:
            placement[site.name] = Placement(precision="int8", rule=f"NNCF put pairs on {', '.join(int8)}")
        elif core is not None:
            placement[site.name] = Placement(precision=FLOAT, rule=in_float.get(core, _LEFT))
    return Quantized(graph, record, placement)


def _run_once(
    calibrated: CalibratedGraph, dialect: Dialect, names: Sequence[str], alphas: Strengths, in_float: Collection[str]
) -> NNCFRun:
    """Run NNCF on the graph; not again for another precision that needs the same pairs. `in_float` are cores."""
    from vitdeploy.quantize.nncf_process import StaticSettings

    lowered = dialect.partial_int8_attention
    symmetric = dialect.activation_codes == "int8"
    prepared = _prepare(calibrated, lowered=lowered)
    settings = StaticSettings(
        ignored=_list_ignored(calibrated.graph, prepared, names, in_float),
        alpha=alphas[0],
        symmetric=symmetric,
        half_weights=not symmetric and largest_weight(dialect) < FULL_RANGE,
    )
    key = (settings, alphas, lowered)
    if key not in calibrated.nncf_runs:
        calibrated.nncf_runs[key] = _search(calibrated, prepared, settings, names, alphas)
    return calibrated.nncf_runs[key]


def _search(
    calibrated: CalibratedGraph, prepared: Graph, settings: StaticSettings, names: Sequence[str], alphas: Strengths
) -> NNCFRun:
    """Try each strength on as many batches as are compared, and quantize with the best one on all of them."""
    from vitdeploy.calibrate.search import SCORED_BATCHES

    calibration = calibrated.require_images()
    few = min(SCORED_BATCHES, calibration.count)
    scores: dict[float | None, float] = {}
    best, graph = alphas[0], None
    tries = [settings.model_copy(update={"alpha": alpha}) for alpha in (alphas if len(alphas) > 1 else ())]
    for one, candidate in zip(tries, _quantize(calibrated, prepared, tries, names, few), strict=True):
        scores[one.alpha] = calibrated.judge.sqnr_db(candidate)
        if graph is None or scores[one.alpha] > scores[best] + _LEAST_GAIN_DB:
            best, graph = one.alpha, candidate
    if graph is None or few < calibration.count:
        final = settings.model_copy(update={"alpha": best})
        (graph,) = _quantize(calibrated, prepared, [final], names, calibration.count)
    tried = [SearchStep(alpha=a, bias_correction=True, output_sqnr_db=_finite(s)) for a, s in scores.items()]
    return NNCFRun(graph, best, tuple(tried))


def _quantize(
    calibrated: CalibratedGraph, prepared: Graph, settings: Sequence[StaticSettings], names: Sequence[str], count: int
) -> list[Graph]:
    """Return a graph for each of the settings, calibrated on so many batches."""
    from vitdeploy.quantize.nncf_pairs import fit_codes, tidy_weights
    from vitdeploy.quantize.nncf_process import run_nncf

    if not settings:
        return []
    batches = islice(calibrated.require_images().batches(), count)
    title = "Quantize with NNCF" if len(settings) == 1 else "Search the strength of NNCF's SmoothQuant"
    with calibrated.progress.step(title):
        graphs = run_nncf(prepared, settings, batches)
    for graph, one in zip(graphs, settings, strict=True):
        fit_codes(graph, names, "int8" if one.symmetric else "uint8")
        tidy_weights(graph)
    return graphs


def _prepare(calibrated: CalibratedGraph, *, lowered: bool) -> Graph:
    """Return the graph that NNCF gets: with the two products of each attention, if it may quantize them."""
    from vitdeploy.passes.lower_primitives import LowerPrimitives

    graph = calibrated.copy()
    if lowered:
        LowerPrimitives().apply(graph)
    return graph


def _list_ignored(raised: Graph, prepared: Graph, names: Sequence[str], in_float: Collection[str]) -> tuple[str, ...]:
    """List the nodes that NNCF must leave alone: all but the linears, products of attention, and moves before them."""
    from vitdeploy.quantize.nncf_pairs import MOVES

    attention = [node.name for node in raised.nodes if node.op_type == "Attention" and node.domain == ""]
    cores = [name for name in attention if name not in in_float]
    allowed = {*names, *(f"{core}/{product}" for core in cores for product in ("qk", "pv"))}
    return tuple(node.name or "" for node in prepared.nodes if node.op_type not in MOVES and node.name not in allowed)


def _finite(decibels: float) -> float | None:
    return decibels if np.isfinite(decibels) else None
