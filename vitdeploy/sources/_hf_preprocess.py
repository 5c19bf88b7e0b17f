"""Translate preprocessor_config.json of transformers into `Preprocess`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vitdeploy.errors import SourceError
from vitdeploy.recipe import Interpolation, Preprocess

# PIL.Image.Resampling by number, as the file stores it.
_RESAMPLE: dict[int, Interpolation] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # fmt: skip
_BYTE = 255.0


def image_size(config: Any) -> tuple[int, int] | None:
    """Return the image size in a model's config as (height, width); None if it has none."""
    raw = getattr(config, "image_size", None)
    if isinstance(raw, int):
        return raw, raw
    return (int(raw[0]), int(raw[1])) if isinstance(raw, (list, tuple)) and len(raw) == 2 else None


def preprocess_of(
    model: str, processor: Mapping[str, Any] | None, config: Any, size: tuple[int, int] | None
) -> Preprocess:
    """Return the preprocessing in `processor`; without one, ImageNet's at the size in the config.

    Raises:
        SourceError: the image size is unknown, or the number of channels is not 1 or 3.
    """
    processor = processor or {}
    config_channels = getattr(config, "num_channels", 3)
    channels: Literal[1, 3] = 1 if config_channels == 1 else 3
    if config_channels != channels:
        raise SourceError(f"hf:{model} takes {config_channels} channels", fix="Give a model that takes 1 or 3.")
    processor_size, resize, crop_pct = _read_geometry(processor)
    size = size or processor_size or image_size(config)
    if size is None:
        raise SourceError(f"hf:{model}: its image size is unknown", fix="Give --image-size HxW.")
    mean, std = _read_statistics(processor, channels)
    return Preprocess(
        size=size,
        mean=mean,
        std=std,
        interpolation=_RESAMPLE.get(processor.get("resample", 3), "bicubic"),
        channels=channels,
        resize=resize,
        crop_pct=crop_pct,
    )


def _read_geometry(processor: Mapping[str, Any]) -> tuple[tuple[int, int] | None, Literal["shortest", "exact"], float]:
    """Return final size, resize rule and crop_pct, from {height, width} or {shortest_edge}, with or without a crop."""
    size = processor.get("size") or {}
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    cropped = (int(crop["height"]), int(crop["width"])) if crop else None
    if "height" in size and "width" in size:
        resized = (int(size["height"]), int(size["width"]))
        return cropped or resized, "exact", min(1.0, (cropped or resized)[0] / resized[0])
    edge = size.get("shortest_edge")
    if edge is None:
        return cropped, "shortest", 1.0
    if cropped:
        return cropped, "shortest", min(1.0, min(cropped) / edge)
    # ConvNeXT's form: the shorter side becomes shortest_edge / crop_pct, and the centre is cropped to the edge.
    return (int(edge), int(edge)), "shortest", float(processor.get("crop_pct") or 1.0)


def _read_statistics(processor: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std on the scale where a byte is divided by 255, whatever the processor's own factor is."""
    default = Preprocess(size=(1, 1))
    factor = float(processor.get("rescale_factor") or 1 / _BYTE) if processor.get("do_rescale", True) else 1.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if processor.get("do_normalize", True):
        mean = tuple(processor.get("image_mean") or default.mean)
        std = tuple(processor.get("image_std") or default.std)
    scale = _BYTE * factor
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    if abs(scale - 1) < 1e-6:  # the factor is 1/255 in decimals: keep the numbers as they are written
        return mean, std
    return tuple(m / scale for m in mean), tuple(s / scale for s in std)
