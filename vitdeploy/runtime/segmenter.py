"""An open family that segments what prompts name: the encoder runs once for each image, the decoder for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.artifact.family import Family, load_family
from vitdeploy.data.geometry import place, visible_area
from vitdeploy.data.point_prompts import Prompt, fill_slots
from vitdeploy.data.preprocess import to_input, to_pixels, to_rgb
from vitdeploy.errors import DataError
from vitdeploy.recipe import InputForm, Preprocess
from vitdeploy.runtime.pair import PairSession, open_pair
from vitdeploy.session import Array, Closing, is_finite
from vitdeploy.tasks.promptable_masks import choose_mask, draw_mask, draw_padded_mask

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Segment:
    """The answer to one prompt: the mask (height, width) of the image, bool, and the score that the model expects."""

    prompt: Prompt
    mask: Array
    score: float


class Segmenter(Closing):
    """Both parts of a family, open. Close it, or use it in a `with` block.

    Raises:
        ArtifactError: the folder is damaged, or its parts do not belong together.
        TargetUnavailable: it cannot run on this machine.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.family: Family = load_family(Path(path))
        self._pair = open_pair(self.family, threads)

    def segment(self, image: Image, prompts: Sequence[Prompt]) -> list[Segment]:
        """Return a mask for each prompt.

        Args:
            image: a Pillow image.
            prompts: in pixels of the upright image.

        Raises:
            DataError: a prompt is outside of the image or has too many points, or the model gives NaN or infinity.
        """
        manifest = self.family.encoder.manifest
        return segment(self._pair, image, prompts, manifest.preprocess, manifest.recipe.target.input)

    def close(self) -> None:
        """Free the engines."""
        self._pair.close()


def segment(
    pair: PairSession, image: Image, prompts: Sequence[Prompt], preprocess: Preprocess, form: InputForm
) -> list[Segment]:
    """Return a mask for each prompt; see `Segmenter.segment`."""
    upright = to_rgb(image)
    size = upright.height, upright.width
    for prompt in prompts:
        check_inside(prompt, size)
    moved = [move_to_input(prompt, size, preprocess) for prompt in prompts]
    slots = [fill_slots(prompt) for prompt in moved]
    pixels = to_pixels(upright, preprocess)
    encoded = pair.encode(to_input(pixels[None], preprocess, form))
    segments = []
    for prompt, filled in zip(prompts, slots, strict=True):
        outputs = pair.decode(encoded, filled)
        if not is_finite(outputs):
            raise DataError(
                "the model gives NaN or infinity", fix="Export it in a precision with a larger range, such as fp32."
            )
        logits, score = choose_mask(outputs)
        segments.append(Segment(prompt, draw_on_image(logits, size, preprocess), score))
    return segments


def draw_on_image(logits: Array, size: tuple[int, int], preprocess: Preprocess) -> Array:
    """Return the mask of logits (h, w) that cover the model's input, in an image of `size`: bool (height, width)."""
    if preprocess.resize != "letterbox":
        return draw_mask(logits, visible_area(*size, preprocess), size)
    area = place(*size, preprocess)
    top, left = max(-area.top, 0), max(-area.left, 0)
    inside = slice(top, top + area.height), slice(left, left + area.width)
    return draw_padded_mask(logits, preprocess.size, inside, size)


def move_to_input(prompt: Prompt, size: tuple[int, int], preprocess: Preprocess) -> Prompt:
    """Return a prompt in pixels of the model's input, from one in pixels of an upright image of `size`."""
    height, width = size
    area = place(height, width, preprocess)
    return prompt.scale(area.width / width, area.height / height, area.left, area.top)


def check_inside(prompt: Prompt, size: tuple[int, int]) -> None:
    """Check that a prompt lies in an image of `size`, (height, width), and that its box is one.

    Raises:
        DataError: it does not.
    """
    height, width = size
    corners = () if prompt.box is None else (prompt.box[:2], prompt.box[2:])
    for x, y in (*prompt.points, *corners):
        if not (0 <= x <= width and 0 <= y <= height):
            raise DataError(
                f"the prompt {x:g},{y:g} is outside of the image, which is {width} wide and {height} high",
                fix="Give pixels of the image, x before y, from its top left corner.",
            )
    if prompt.box is not None and not (prompt.box[0] < prompt.box[2] and prompt.box[1] < prompt.box[3]):
        text = ",".join(f"{value:g}" for value in prompt.box)
        raise DataError(f"the box {text} is empty", fix="Give left, top, right and bottom: --box X0,Y0,X1,Y1.")
