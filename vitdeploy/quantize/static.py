"""Static INT8: Q/DQ pairs on the linears, ranges from calibration images, by NNCF's ONNX backend."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitdeploy.environment import host
from vitdeploy.errors import QuantizeError, TargetUnavailable
from vitdeploy.graph.model import Graph, load
from vitdeploy.graph.structure import Structure
from vitdeploy.quantize import Calibration, Quantized
from vitdeploy.quantize.placement import place
from vitdeploy.recipe import PrecisionSpec


def quantize(
    graph: Graph, structure: Structure, precision: PrecisionSpec, calibration: Calibration | None, workdir: Path
) -> Quantized:
    """Write Q/DQ around every placed linear: activations per tensor, weights per channel and symmetric.

    NNCF migrates activation outliers (SmoothQuant) and corrects biases on the way. The attention core, residual adds
    and LayerNorms are out of its scope, so that backends keep fusing them.

    Raises:
        QuantizeError: no calibration data, or NNCF refused the graph.
    """
    if calibration is None:
        raise QuantizeError(
            "int8 needs calibration images: ranges are never invented",
            fix="Give --calibration DATA (a folder of images is enough), or use --precision int8-dynamic.",
        )
    placed, kept = place(structure, precision.keep)
    names = {name for linear in placed for name in linear.nodes}
    ignored = [node.name for node in graph.nodes if node.name and node.name not in names]
    saturates = not host().int8_dot_product
    path = workdir / "raised.onnx"
    graph.save(path)
    with _quiet():
        _run(path, graph.model.graph.inputs[0].name or "", ignored, precision, calibration, saturates=saturates)
    record = {
        "method": "static Q/DQ (NNCF)",
        "smooth_alpha": str(precision.smooth_alpha),
        "calibration": calibration.spec,
        "calibration_digest": calibration.digest,
        "calibration_images": str(calibration.images),
        "weight_bits": "7" if saturates else "8",
        "quantized": str(len(placed)),
        **{f"float: {name}": rule for name, rule in kept.items()},
    }
    return Quantized(load(path), record)


def _run(
    path: Path,
    input_name: str,
    ignored: list[str],
    precision: PrecisionSpec,
    calibration: Calibration,
    *,
    saturates: bool,
) -> None:
    try:
        import nncf
        import onnx
        from nncf.quantization import advanced_parameters as advanced
    except ImportError as error:
        raise TargetUnavailable(f"{error.name} is not installed", fix="pip install 'vitdeploy[quantize]'.") from None

    options: dict[str, Any] = {}
    if precision.smooth_alpha != "auto":
        alpha = -1.0 if precision.smooth_alpha == "off" else float(precision.smooth_alpha)
        options["smooth_quant_alphas"] = advanced.AdvancedSmoothQuantParameters(matmul=alpha)
    overflow = advanced.OverflowFix.ENABLE if saturates else advanced.OverflowFix.DISABLE
    dataset = nncf.Dataset(_Stream(calibration), lambda batch: {input_name: batch})
    try:
        quantized = nncf.quantize(
            onnx.load(path),
            dataset,
            subset_size=calibration.count,
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
            advanced_parameters=advanced.AdvancedQuantizationParameters(overflow_fix=overflow, **options),
        )
    except (nncf.InternalError, nncf.ValidationError, nncf.UnsupportedModelError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise QuantizeError(
            f"NNCF cannot quantize this graph: {reason}", fix="Use --precision int8-dynamic or fp32."
        ) from error
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    onnx.save(quantized, path)


class _Stream:
    """Calibration batches, read anew at each pass: NNCF makes several."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def __iter__(self) -> Iterator[Any]:
        return iter(self._calibration.batches())

    def __len__(self) -> int:
        return self._calibration.count


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF prints a line for every node and draws its own bars on stdout, which `--json` owns."""
    for name in ("nncf", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield
