"""Compare the outputs of an INT8 engine with those of its own graph, which a bundle brings.

Against FP32 an engine may lose as much as quantization does, so a fault that costs less cannot be noticed there. The
graph computes with the same integers: only codes near the middle between two flip, and how far that moves the outputs
was measured at export.
"""

from __future__ import annotations

from collections.abc import Mapping

from vitdeploy.graph.sqnr import decibels
from vitdeploy.measure.deviation import largest_error, measure_deviations
from vitdeploy.pipeline.block_values import BlockValues, take_sample
from vitdeploy.pipeline.read_inside import Readings, find_floor
from vitdeploy.session import Array
from vitdeploy.targets import Bundle


def explain_other_codes(
    bundle: Bundle, values: BlockValues, outputs: Mapping[str, Array], images: int, *, on_gpu: bool
) -> str:
    """Return why the outputs of an engine are not those of its graph; empty if they are, or cannot be compared.

    Args:
        bundle: the graph that the engine was made from.
        values: those that the bundle brings. Only graphs with integers are judged by them.
        outputs: the engine's, by name, for the first of the stored examples.
        images: the number of images in it.
        on_gpu: True if a GPU runs the engine.
    """
    precision = bundle.numbers.precision
    if precision not in values.moved:
        return ""
    spots = [spot for spot in values.outputs if spot.tensor in outputs]
    samples = {spot.tensor: take_sample(spot, outputs[spot.tensor], images, values.limit) for spot in spots}
    readings = Readings(values, precision, samples, None, "compiled", "", ())
    places = [readings.place(spot, ()) for spot in spots]
    floor = find_floor(bundle.numbers, on_gpu=on_gpu)
    ratios = [ratio or 0.0 for ratio in measure_deviations(places, floor)]
    if max(ratios, default=0.0) <= 1:
        return ""
    worst = ratios.index(max(ratios))
    error, most = (
        decibels(1.0, energy or 0.0) for energy in (places[worst].error, largest_error(places[worst], floor))
    )
    return (
        f"output {spots[worst].tensor!r} is {error:.1f} dB from its graph's, which has the same integers; "
        f"a sound engine has {most:.1f} dB or more"
    )
