"""Translate preprocessor_config.json of transformers into `Preprocess`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vitdeploy.errors import SourceError
from vitdeploy.frozen import replace
from vitdeploy.recipe import Interpolation, Preprocess

# PIL.Image.Resampling by number, as the file stores it.
_RESAMPLE: dict[int, Interpolation] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # fmt: skip
_BYTE = 255.0
_WARP_FROM = 384  # ConvNext squashes images from this size on, and crops below it
_LEVIT_RATIO = 256 / 224  # LeViT resizes to this times `shortest_edge`, then crops
_EDGE_DIVISOR = {"YolosImageProcessor": 16}  # in the code of the class, not in its config
_ROUNDS_TO_NEAREST = ("SamImageProcessor", "SamHQImageProcessor")
_LARGEST_SIDE = 8192  # larger numbers count pixels, or are no limit
_ROUNDS_UP = ("MaskFormerImageProcessor", "Mask2FormerImageProcessor", "TextNetImageProcessor")


def vision_config(config: Any) -> Any:
    """Return the config of the image tower, if the model has two or a decoder of text; else the model's own."""
    tower = getattr(config, "vision_config", None)
    if tower is None and getattr(config, "model_type", "") == "vision-encoder-decoder":
        tower = config.encoder
    return tower or config


def is_patched(config: Any) -> bool:
    """Return True for SigLIP 2, whose models take patches of images of any aspect ratio."""
    vision = vision_config(config)
    return getattr(vision, "image_size", None) is None and hasattr(vision, "num_patches")


def patched_size(config: Any) -> tuple[int, int]:
    """Return height and width of a square image with as many patches as the config has positions."""
    vision = vision_config(config)
    side = int(vision.num_patches**0.5) * int(vision.patch_size)
    return side, side


def prepare_patched(
    model: str, processor: Mapping[str, Any] | None, config: Any, size: tuple[int, int] | None
) -> tuple[Preprocess, str]:
    """Return the preprocessing for images of one size, and why it cannot be compared with the model's own."""
    size = size or patched_size(config)
    preprocess = replace(preprocess_of(model, processor, vision_config(config), size), resize="exact", crop_pct=1.0)
    reason = f"hf:{model} keeps the aspect ratio of each image, and an artifact takes images of {size[0]}x{size[1]}"
    return preprocess, reason


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
    geometry = _read_geometry(processor)
    size = size or geometry.get("size") or image_size(config)
    if size is None:
        raise SourceError(f"hf:{model}: its image size is unknown", fix="Give --image-size HxW.")
    mean, std = _read_statistics(processor, channels)
    resample = 2 if processor.get("do_affine_transform") else processor.get("resample", 3)
    background = processor.get("background_color")
    return Preprocess.model_validate(
        {
            "fill": (0,) * channels if geometry.get("resize") != "letterbox" else background,
            **geometry,
            "size": size,
            "mean": mean,
            "std": std,
            "interpolation": _RESAMPLE.get(2 if resample is None else int(resample), "bicubic"),
            "channels": channels,
            "crop_rounding": "down",
            "channel_order": "bgr" if processor.get("do_flip_channel_order") and channels == 3 else "rgb",
        }
    )


def preprocess_size(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the size of the images that a processor gives; None if that depends on the image."""
    size: tuple[int, int] | None = _read_geometry(processor).get("size")
    return size


def request_size(processor: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return the attributes with which a processor gives images of `size` (height, width); none if it cannot.

    The share of the image that is cropped stays. A processor that keeps all of the image is not changed: its images are
    padded to `size`.
    """
    own, crop = processor.get("size") or {}, processor.get("crop_size") or {}
    if processor.get("do_center_crop") and "height" in crop:
        ratio = max(pixels / int(crop[side]) for pixels, side in zip(size, ("height", "width"), strict=True))
        scaled = {name: round(ratio * int(value)) for name, value in own.items() if value}
        return {"size": scaled, "crop_size": {"height": size[0], "width": size[1]}}
    if "height" in own and not _keeps_aspect_ratio(processor):
        return {"size": {"height": size[0], "width": size[1]}}
    if "height" in own and processor.get("keep_aspect_ratio"):
        return {"size": {"height": size[0], "width": size[1]}}
    if "crop_pct" in processor and size[0] == size[1]:
        return {"size": {"shortest_edge": size[0]}}
    return {}


def _keeps_aspect_ratio(processor: Mapping[str, Any]) -> bool:
    return bool(processor.get("keep_aspect_ratio") or processor.get("do_pad"))


def _read_geometry(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Preprocess` about sizes; `size` is missing if the processor has none."""
    size = {key: int(value) for key, value in (processor.get("size") or {}).items() if value}
    kind = str(processor.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    divisor = int(processor.get("size_divisor") or _EDGE_DIVISOR.get(kind) or 1)
    rounding = "up" if kind in _ROUNDS_UP else "nearest" if kind in _ROUNDS_TO_NEAREST else "down"
    size = size if max(size.values(), default=0) <= _LARGEST_SIDE else {}
    if processor.get("do_affine_transform") and "height" in size:  # of a person's box: it keeps the aspect ratio
        whole = {"size": (size["height"], size["width"]), "resize": "letterbox", "padding": "centre"}
        return {**whole, "fill": (0, 0, 0), "antialias": False}
    if not processor.get("do_resize", True) or not size:
        edges: dict[str, Any] = {"resize": "letterbox", "enlarge": False, "padding": "end"}
        return {**edges, "size_divisor": divisor, "size_rounding": rounding} if "size_divisor" in processor else {}
    crop = _read_crop(processor)
    if (crop is not None or "crop_pct" in processor) and ("shortest_edge" in size or "height" in size):
        return _read_cropping(kind, processor, size, crop)
    if "height" in size:
        return _read_whole(processor, (size["height"], size["width"]))
    if "max_height" in size:
        return {"size": (size["max_height"], size["max_width"]), "resize": "letterbox", "padding": "end"}
    return _read_edges(processor, size, divisor, rounding)


def _read_crop(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    return (int(crop["height"]), int(crop["width"])) if crop and "height" in crop else None


def _read_cropping(
    kind: str, processor: Mapping[str, Any], size: Mapping[str, int], crop: tuple[int, int] | None
) -> dict[str, Any]:
    """Read a processor that crops the centre."""
    crop_pct = processor.get("crop_pct")
    edge = size.get("shortest_edge")
    if edge is None and not crop_pct:
        resized = size["height"], size["width"]
        return {"size": crop or resized, "resize": "exact", **_resize_to(resized, crop or resized)}
    edge = edge or size["height"]
    if crop is None and edge >= _WARP_FROM:
        return {"size": (edge, edge), "resize": "exact"}
    if crop_pct:
        resized_edge = int(edge / crop_pct)
    else:
        resized_edge = int(_LEVIT_RATIO * edge) if kind == "LevitImageProcessor" else edge
    crop = crop or (edge, edge)
    return {"size": crop, "resize": "shortest", **_resize_to((resized_edge, resized_edge), crop)}


def _resize_to(resized: tuple[int, int], crop: tuple[int, int]) -> dict[str, Any]:
    """Return the size before the crop, as a share if that says it, so that --image-size can change it."""
    share = crop[0] / resized[0]
    if share <= 1 and abs(crop[1] / resized[1] - share) < 1e-9:
        return {"crop_pct": share}
    return {"resize_to": resized}


def _read_whole(processor: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Read a processor that makes all of the image fit into height and width."""
    if processor.get("keep_aspect_ratio"):
        multiple = processor.get("ensure_multiple_of") or 1
        divisor = int(multiple) if multiple >= 1 else 1
        return {"size": size, "resize": "letterbox", "size_divisor": divisor, "size_rounding": "even"}
    if processor.get("do_pad"):
        return {"size": size, "resize": "letterbox", "padding": "centre"}
    return {"size": size, "resize": "exact"}


def _read_edges(processor: Mapping[str, Any], size: Mapping[str, int], divisor: int, rounding: str) -> dict[str, Any]:
    """Read a processor that scales to edges, and keeps the aspect ratio."""
    longest, shortest = size.get("longest_edge"), size.get("shortest_edge")
    pad = processor.get("pad_size") or {}
    edge = longest or shortest or 1
    whole = edge // divisor if rounding == "down" else -(-edge // divisor)
    side = max(1, whole) * divisor
    padded = (int(pad["height"]), int(pad["width"])) if "height" in pad else (side, side)
    edges: dict[str, Any] = {"longest_edge": longest, "shortest_edge": shortest, "size_divisor": divisor}
    return {"size": padded, "resize": "letterbox", "padding": "end", "size_rounding": rounding, **edges}


def _read_statistics(processor: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std on the scale where a byte is divided by 255, whatever the processor's own factor is."""
    default = Preprocess(size=(1, 1))
    factor = float(processor.get("rescale_factor") or 1 / _BYTE) if processor.get("do_rescale", True) else 1.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if processor.get("do_normalize", True):
        mean = _per_channel(processor.get("image_mean"), default.mean)
        std = _per_channel(processor.get("image_std"), default.std)
    if processor.get("rescale_offset") or processor.get("offset"):  # x * factor - 1
        mean = tuple(m + 1 for m in mean)
    if processor.get("include_top"):  # EfficientNet's class divides by std twice
        std = tuple(s * s for s in std)
    scale = _BYTE * factor
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    if abs(scale - 1) < 1e-6:  # the factor is 1/255 in decimals: keep the numbers as they are written
        return mean, std
    return tuple(m / scale for m in mean), tuple(s / scale for s in std)


def _per_channel(values: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    if values is None:
        return default
    return tuple(float(v) for v in values) if isinstance(values, (list, tuple)) else (float(values),) * 3
