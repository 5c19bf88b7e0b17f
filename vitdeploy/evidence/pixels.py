"""The comparison of an artifact's preprocessing with the model's own."""

from __future__ import annotations

from vitdeploy.evidence.fact import Fact


class PixelCheck(Fact):
    """The model's own image processor and vitdeploy's preprocessing, run on the same images and compared.

    Differences are in bytes: 1 is a step of 1/255 before mean and std.

    Attributes:
        processor: the class of the model's own processor, and its library.
        equal: True if they give the same pixels within rounding (see `vitdeploy.data.pixel_check`); None if they could
            not be compared.
        why: the reason why they are not equal, or could not be compared.
        images: height x width of the images that were compared.
        shrunk: those of them that are too large for the input of fixed size. Both sides shrank them to the same size.
        max_difference: the largest difference of a value.
        mean_difference: the mean difference, of the image with the largest.
        beyond_one_pct: the share of values that differ by more than 1, of the image with the largest, in percent.
        flat_difference: the largest difference on images of one colour, where no pixel is rounded: mean, std and order
            of the channels.
    """

    processor: str
    equal: bool | None
    why: str = ""
    images: tuple[str, ...] = ()
    shrunk: int = 0
    max_difference: float | None = None
    mean_difference: float | None = None
    beyond_one_pct: float | None = None
    flat_difference: float | None = None
