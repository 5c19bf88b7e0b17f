"""Run NNCF on a graph, in a process of its own: it prints to stdout, changes loggers, and may crash."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict

from vitdeploy import apart
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.model import Graph, load
from vitdeploy.limits import MAX_TRIAL_BYTES
from vitdeploy.session import Inputs, as_feeds

if TYPE_CHECKING:
    import nncf
    import onnx

_FIX = "Use --quantizer own."
_SECONDS = 4 * 3600
"""An end for what hangs. ViT-Base with 128 images takes minutes."""
_MEMORY_PER_BYTE = 8  # of the graph: NNCF copies it, and ONNX Runtime opens it with statistics added
_INLINE_BYTES = 1 << 30
"""Larger graphs are stored with their weights beside them: protobuf ends at 2 GB."""
_NO_SMOOTHING = -1.0
"""NNCF's strength for no SmoothQuant."""


class Settings(BaseModel):
    """Settings of one run, as a value that can be compared and hashed.

    Attributes:
        ignored: the nodes that NNCF leaves as they are.
    """

    model_config = ConfigDict(frozen=True)
    ignored: tuple[str, ...]


class StaticSettings(Settings):
    """Settings of `nncf.quantize`: Q/DQ pairs on weights and activations.

    Attributes:
        alpha: the strength of SmoothQuant; None: off.
        symmetric: whether the codes of activations lie around 0.
        half_weights: whether weights use half of their codes, because sums of products would saturate (AVX2).
    """

    kind: Literal["static"] = "static"
    alpha: float | None
    symmetric: bool
    half_weights: bool


class WeightSettings(Settings):
    """Settings of `nncf.compress_weights`: only weights are stored in few bits.

    Attributes:
        bits: 8 (symmetric, a scale for each output channel) or 4 (asymmetric, in groups).
        group: how many inputs share a scale, with 4 bits.
    """

    kind: Literal["weights"] = "weights"
    bits: Literal[4, 8]
    group: int


class _Order(BaseModel):
    """Runs on the graph in `folder`, with the feeds beside it, one file a batch. The results go there too."""

    model_config = ConfigDict(frozen=True)
    folder: Path
    batches: int
    settings: tuple[StaticSettings | WeightSettings, ...]


def is_installed() -> bool:
    """Return whether NNCF is installed here."""
    return find_spec("nncf") is not None


def require() -> None:
    """Refuse what needs NNCF where it is not installed.

    Raises:
        QuantizeError: it is not installed.
    """
    if not is_installed():
        raise QuantizeError(
            "--quantizer nncf needs NNCF, which is not installed here",
            fix="pip install 'vitdeploy[quantize]', or use --quantizer own.",
        )


def run_nncf(
    graph: Graph, settings: Sequence[StaticSettings | WeightSettings], batches: Iterable[Inputs]
) -> list[Graph]:
    """Quantize copies of a float32 graph with NNCF's ONNX backend, one for each of the settings.

    Nodes keep their names.

    Args:
        graph: not changed.
        settings: of each run.
        batches: calibration inputs; none at all if only weights are quantized without images.

    Raises:
        QuantizeError: NNCF is not installed, or fails on this graph.
    """
    require()
    with scratch_folder("nncf") as folder:
        graph.save(folder / _GRAPH)
        feed = graph.model.graph.inputs[0].name or ""
        count = 0
        for batch in batches:
            feeds: dict[str, Any] = dict(as_feeds(batch, feed))
            np.savez(_feeds_file(folder, count), **feeds)
            count += 1
        order = _Order(folder=folder, batches=count, settings=tuple(settings))
        memory = MAX_TRIAL_BYTES.value + _MEMORY_PER_BYTE * graph.weight_bytes()
        try:
            apart.run(__name__, order.model_dump_json().encode(), seconds=_SECONDS, memory=memory)
        except apart.Refused as error:
            raise QuantizeError(error.message, fix=error.fix) from None
        except apart.Failed as error:
            fix = MAX_TRIAL_BYTES.fix if "memory" in error.reason else _FIX
            raise QuantizeError(f"NNCF on this graph {error.reason}", fix=fix) from None
        results = [load(_result_file(folder, number)) for number in range(len(settings))]
        for result in results:
            ir.external_data.load_to_model(result.model)  # the folder is about to go
            result.infer_shapes()
    return results


_GRAPH = "graph.onnx"


def _result_file(folder: Path, number: int) -> Path:
    return folder / f"quantized{number}.onnx"


def _feeds_file(folder: Path, number: int) -> Path:
    return folder / f"batch{number}.npz"


def _work(task: bytes) -> bytes:
    order = _Order.model_validate_json(task)
    import nncf
    import onnx

    for number, settings in enumerate(order.settings):
        path = _result_file(order.folder, number)
        model = _quantize_safely(nncf, onnx.load(order.folder / _GRAPH), settings, order)
        large = model.ByteSize() > _INLINE_BYTES
        onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")
    return b""


def _quantize_safely(
    module: Any, model: onnx.ModelProto, settings: StaticSettings | WeightSettings, order: _Order
) -> onnx.ModelProto:
    # NNCF reads the opset of the first domain, whichever that is.
    domains = sorted(model.opset_import, key=lambda entry: entry.domain != "")
    del model.opset_import[:]
    model.opset_import.extend(domains)
    try:
        result: onnx.ModelProto = _quantize(module, model, settings, order)
    except Exception as error:  # noqa: BLE001  whatever a foreign library raises on a graph
        reason = (str(error).strip().splitlines() or [""])[0]
        raise QuantizeError(
            f"NNCF {module.__version__} fails on this graph: {type(error).__name__}: {reason}", fix=_FIX
        ) from None
    return result


def _quantize(module: Any, model: onnx.ModelProto, settings: StaticSettings | WeightSettings, order: _Order) -> Any:
    files = [_feeds_file(order.folder, number) for number in range(order.batches)]
    dataset = module.Dataset(files, _read_feeds) if files else None
    ignored = module.IgnoredScope(names=list(settings.ignored), validate=False)
    if isinstance(settings, WeightSettings):
        return _compress(module, model, settings, dataset, ignored, len(files))
    presets, overflow = module.QuantizationPreset, module.OverflowFix
    alpha = _NO_SMOOTHING if settings.alpha is None else settings.alpha
    advanced = module.AdvancedQuantizationParameters(
        overflow_fix=overflow.ENABLE if settings.half_weights else overflow.DISABLE,
        smooth_quant_alphas=module.AdvancedSmoothQuantParameters(matmul=alpha),
    )
    return module.quantize(
        model,
        dataset,
        preset=presets.PERFORMANCE if settings.symmetric else presets.MIXED,
        subset_size=len(files),
        model_type=module.ModelType.TRANSFORMER,  # without it there is no SmoothQuant
        ignored_scope=ignored,
        advanced_parameters=advanced,
    )


def _compress(
    module: Any,
    model: onnx.ModelProto,
    settings: WeightSettings,
    dataset: nncf.Dataset | None,
    ignored: nncf.IgnoredScope,
    count: int,
) -> Any:
    modes = module.CompressWeightsMode
    if settings.bits == 8:  # NNCF has nothing that images could improve with 8 bits
        return module.compress_weights(model, mode=modes.INT8_SYM, ignored_scope=ignored)
    fallback = module.GroupSizeFallbackMode.ADJUST  # a smaller group where this one does not divide the inputs
    by_images = {"dataset": dataset, "subset_size": count, "awq": True, "scale_estimation": True} if count else {}
    return module.compress_weights(
        model,
        mode=modes.INT4_ASYM,
        ratio=1.0,
        all_layers=True,  # the last linear too: which ones stay in float is `ignored`
        group_size=settings.group,
        ignored_scope=ignored,
        advanced_parameters=module.AdvancedCompressionParameters(group_size_fallback_mode=fallback),
        **by_images,
    )


def _read_feeds(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return dict(arrays)


if __name__ == "__main__":
    apart.answer(_work)
