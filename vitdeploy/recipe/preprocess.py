"""The steps from an image to a model's input, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vitdeploy.frozen import Frozen

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Resize = Literal["shortest", "exact", "letterbox"]
Side = Annotated[int, Field(ge=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


class Preprocess(Frozen):
    """The steps from an image file to the model's input: resize, crop or pad, [0, 1], (x - mean) / std, NCHW float32.

    An image that is larger than `size` after resizing is cropped at its centre, one that is smaller is padded.

    Attributes:
        size: height and width of the model's input.
        mean, std: one number for each channel, in the order in which the model gets them; for pixels in [0, 1].
        interpolation: the filter of Pillow.
        antialias: filters are wider where an image is made smaller. False is only for bilinear and bicubic.
        channels: 3 for colours, 1 for grey.
        resize: "shortest" (the image just covers size / crop_pct, its aspect ratio is kept), "exact" (it becomes
            size / crop_pct, its aspect ratio is not kept), or "letterbox" (all of it fits, its aspect ratio is kept).
        crop_pct: the share of the resized image that the model sees. Above 1, the image is smaller than the input.
        resize_to: height and width to resize to, where they are not size / crop_pct.
        shortest_edge, longest_edge: for a letterbox, the sides that the image gets if it then fits into `size`. With
            both, the longest edge wins. Without them, the image gets as large as fits.
        enlarge: False if a letterbox leaves images smaller than `size` as they are.
        size_divisor: both sides of the resized image are made multiples of this.
        size_rounding: how those sides are rounded: "down", "up", "nearest" (0.5 goes up) or "even" (as Python's round).
        crop_rounding: how the corner of the crop is rounded, where the number of pixels to cut off is odd.
        padding: pixels are added on all sides ("centre"), or at the right and the bottom ("end").
        fill: the colour of added pixels, one byte for each channel, in the model's order. None is the mean.
        channel_order: the order in which the model gets colours.
        mask: the input has one more plane, which is 255 where there is image and 0 where there is padding.
        frames: the number of frames of a clip, each of which is prepared as an image; the input is then (batch, frames,
            channels, height, width). None: the model takes single images.
    """

    size: tuple[Side, Side]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bicubic"
    antialias: bool = True
    channels: Literal[1, 3] = 3
    resize: Resize = "shortest"
    crop_pct: Annotated[float, Field(gt=0, le=4)] = 1.0
    resize_to: tuple[Side, Side] | None = None
    shortest_edge: Side | None = None
    longest_edge: Side | None = None
    enlarge: bool = True
    size_divisor: Side = 1
    size_rounding: Literal["down", "up", "nearest", "even"] = "down"
    crop_rounding: Literal["even", "down"] = "even"
    padding: Literal["centre", "end"] = "centre"
    fill: tuple[Byte, ...] | None = None
    channel_order: Literal["rgb", "bgr"] = "rgb"
    mask: bool = False
    frames: Side | None = None

    @model_validator(mode="before")
    @classmethod
    def _count_channels(cls, value: Any) -> Any:
        """Take the number of channels from the mean, unless it is given."""
        if isinstance(value, Mapping) and "channels" not in value and isinstance(value.get("mean"), (list, tuple)):
            return {**value, "channels": len(value["mean"])}
        return value

    @model_validator(mode="after")
    def _check_channels(self) -> Preprocess:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} values each, one for each channel")
        if min(self.std) <= 0:
            raise ValueError("every std must be above 0")
        if self.fill is not None and len(self.fill) != self.channels:
            raise ValueError(f"fill needs {self.channels} values, one for each channel")
        return self

    @model_validator(mode="after")
    def _check_filter(self) -> Preprocess:
        if not self.antialias and self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"antialias: false is not possible with {self.interpolation}, only bilinear and bicubic")
        return self

    @model_validator(mode="after")
    def _check_letterbox(self) -> Preprocess:
        if self.resize != "letterbox" and (self.shortest_edge or self.longest_edge or self.mask):
            raise ValueError("shortest_edge, longest_edge and mask need resize: letterbox")
        if self.resize == "letterbox" and self.resize_to:
            raise ValueError("resize_to has no meaning for resize: letterbox, give shortest_edge or longest_edge")
        if self.mask and self.frames:
            raise ValueError("mask is for single images, and frames for clips: give one of them")
        if min(self.size) < self.size_divisor:
            raise ValueError(f"size is smaller than size_divisor {self.size_divisor}")
        return self

    @property
    def planes(self) -> int:
        """The number of planes of the model's input: its channels, and the mask if there is one."""
        return self.channels + self.mask

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one image, (planes, height, width), or of one clip, (frames, planes, height, width)."""
        return (*((self.frames,) if self.frames else ()), self.planes, *self.size)

    @property
    def sample_word(self) -> str:
        """One sample in words: "image" or "clip"."""
        return "clip" if self.frames else "image"
