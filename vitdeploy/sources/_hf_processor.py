"""The image or video processor of a transformers checkpoint: ask it for a size, run it, and read it as `Preprocess`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.data.pixel_check import OwnProcessor, are_photographs_equal, can_compare, measure_first_image
from vitdeploy.errors import SourceError
from vitdeploy.frozen import replace
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array
from vitdeploy.sources._hf_preprocess import preprocess_of, preprocess_size, request_size

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS, MASK = "pixel_values", "pixel_mask"
_CLIP_PIXELS = "pixel_values_videos"
_FILE = "preprocessor_config.json"
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad", "do_flip_channel_order")
_OTHER_PIXELS = ("flattened_patches", "images")
_KEPT_ANSWERS = 12
_OFFSET_IN_CODE = ("VivitVideoProcessor",)
"""Classes that subtract 1 after scaling, which their config does not say."""


class HfProcessor(OwnProcessor):
    """An image processor as transformers builds it by default, which is the torchvision one if there are two.

    A processor of clips gets one frame: it treats each frame alone.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._answers: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        backend = getattr(processor, "backend", "") or "numpy"
        self.name = f"{type(processor).__name__} of transformers ({backend})"

    def apply(self, image: Image) -> Array:
        """Return the pixels of one image.

        Raises:
            ValueError: the processor gives something else.
        """
        return self._read_pixels(self._run(image))

    def apply_at(self, image: Image, size: tuple[int, int]) -> Array | None:
        """Return the pixels of an image that is resized to `size`; None if the processor does not take a size."""
        try:
            return self._read_pixels(self._run(image, size={"height": size[0], "width": size[1]}, do_pad=False))
        except Exception:  # noqa: BLE001  processors that cannot do it raise what they like
            return None

    def apply_padded(self, image: Image, size: tuple[int, int]) -> tuple[Array, Array | None] | None:
        """Return the pixels of an image that is padded to `size`, and its mask; None if it takes no such size."""
        try:
            answer = self._run(image, do_pad=True, pad_size={"height": size[0], "width": size[1]})
            pixels, mask = self._read_pixels(answer), answer.get(MASK)
        except Exception:  # noqa: BLE001  processors that cannot do it raise what they like
            return None
        return pixels, None if mask is None else np.asarray(mask)[0]

    def gives_mask(self) -> bool:
        """Return True if the processor gives a mask of the padding."""
        from PIL import Image

        try:
            return MASK in self._run(Image.new("RGB", (67, 45)))
        except Exception:  # noqa: BLE001  `apply` reports it
            return False

    def _run(self, image: Image, **kwargs: Any) -> Mapping[str, Any]:
        """Return what the processor gives. The same question is asked for each reading of its config."""
        key = (image.size, image.mode, hash(image.tobytes()), repr(sorted(kwargs.items())))
        if key not in self._answers:
            if len(self._answers) >= _KEPT_ANSWERS:
                self._answers.clear()
            images = {"videos": [[image]]} if is_video_processor(self._processor) else {"images": image}
            answer = self._processor(**images, return_tensors="pt", **kwargs)
            self._answers[key] = answer if hasattr(answer, "items") else {PIXELS: answer}
        return self._answers[key]

    def _read_pixels(self, answer: Mapping[str, Any]) -> Array:
        pixels = [name for name in answer if PIXELS in name or name in _OTHER_PIXELS]
        if pixels not in ([PIXELS], [_CLIP_PIXELS]):
            raise ValueError(f"it gives {', '.join(pixels) or 'no pixels'}, not {PIXELS} alone")
        raw = answer[pixels[0]]
        values = np.asarray(raw.float() if hasattr(raw, "float") else raw, dtype=np.float32)
        if values.ndim == 5:  # a clip of one frame
            values = values[0]
        if values.ndim != 4 or len(values) != 1:
            raise ValueError(f"it gives {PIXELS} of {'x'.join(map(str, values.shape))}, not one image")
        image: Array = values[0]
        return image


def load_processor(
    argument: str, folder: str, local: bool, size: tuple[int, int] | None, *, clips: bool = False
) -> Any:
    """Load the image processor in `folder`, asked for `size` if that is not its own; None if there is none.

    Args:
        argument: the model in messages.
        folder: a folder, or the name of a repository.
        local: it is a folder.
        size: height and width.
        clips: without an image processor, load the one for videos.

    Raises:
        SourceError: there is one, and it cannot be loaded.
    """
    import transformers

    autos: list[Any] = [transformers.AutoImageProcessor, *([transformers.AutoVideoProcessor] if clips else [])]
    processors = (_load(auto, argument, folder, local) for auto in autos)
    processor = next((processor for processor in processors if processor is not None), None)
    if processor is None:
        return None
    own = describe(processor)
    if size is not None and preprocess_size(own) != size:
        for name, value in request_size(own, size).items():
            setattr(processor, name, type(getattr(processor, name))(**value))
    return processor


def _load(auto: Any, argument: str, folder: str, local: bool) -> Any:
    try:
        return auto.from_pretrained(folder, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  hub, JSON and the classes of processors have errors of their own
        path = Path(folder) / _FILE
        if isinstance(error, OSError) or (local and not path.is_file()):
            return None
        raise SourceError(
            f"the image processor of hf:{argument} cannot be loaded: {' '.join(str(error).split())[:300]}",
            fix=f"Correct its {_FILE}.",
        ) from None


def is_video_processor(processor: Any) -> bool:
    """Return True for a processor that takes videos, not images."""
    return hasattr(processor, "video_processor_type") or type(processor).__name__.endswith("VideoProcessor")


def read_processor(
    model: str, processor: Any, config: Any, size: tuple[int, int] | None
) -> tuple[HfProcessor, Preprocess]:
    """Return the processor, and the preprocessing that gives its pixels; the nearest one if none does.

    Raises:
        SourceError: the size of its images is unknown, and `size` is None.
    """
    own = HfProcessor(processor)
    return own, choose_reading(own, preprocess_of(model, describe(processor), config, size))


def describe(processor: Any) -> dict[str, Any]:
    """Return the config of a processor with all defaults of its class; a step that it does not have is None."""
    steps = {name: getattr(processor, name, None) for name in _STEPS}
    offset = {"offset": True} if type(processor).__name__ in _OFFSET_IN_CODE else {}
    return {**steps, **dict(processor.to_dict()), **offset}


def choose_reading(own: OwnProcessor, preprocess: Preprocess) -> Preprocess:
    """Return the reading of a processor's config that gives its pixels; the nearest one if none does.

    A config does not say all: whether padding is added before the normalisation or after it (black, or the mean), on
    which side, how sides are rounded, whether filters antialias. There the pixels decide.
    """
    if not can_compare(own, preprocess):
        return preprocess
    readings = list(_list_readings(preprocess))
    equal = next((reading for reading in readings if are_photographs_equal(own, reading)), None)
    return equal or min(readings, key=lambda reading: measure_first_image(own, reading))


def _list_readings(preprocess: Preprocess) -> Iterator[Preprocess]:
    can_alias = preprocess.interpolation in ("bilinear", "bicubic")
    filters = [preprocess, *([replace(preprocess, antialias=False)] if can_alias else [])]
    yield from filters
    if preprocess.resize != "letterbox":
        return
    if preprocess.shortest_edge is None and preprocess.longest_edge is None:  # DETR's class scales to height and width
        yield from (replace(reading, resize="exact") for reading in filters)
    black, white = (0,) * preprocess.channels, (255,) * preprocess.channels
    fills = dict.fromkeys((preprocess.fill, None, black, white))
    paddings = dict.fromkeys((preprocess.padding, "end", "centre"))
    roundings = dict.fromkeys((preprocess.size_rounding, "nearest", "even", "down"))
    for base, fill, padding, rounding in product(filters, fills, paddings, roundings):
        yield replace(base, fill=fill, padding=padding, size_rounding=rounding)
