"""The size of a model's images: one size, or a range of sizes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from vitdeploy.frozen import Frozen

Side = Annotated[int, Field(ge=1)]
Size = tuple[Side, Side]
"""Height and width in pixels."""

SIZE_FORMS = "HxW or MIN:OPT:MAX, such as 224x224 or 224x224:384x384:512x512"
"""The forms of `--image-size`, in words."""

_SIZE = re.compile(r"0*([1-9][0-9]*)(?:x0*([1-9][0-9]*))?")


class SizeRange(Frozen):
    """The image sizes that an artifact accepts: each side from that of `min` to that of `max`, as (height, width).

    `opt` is the size to optimise for, for which images are prepared.
    """

    min: Size
    opt: Size
    max: Size

    @model_validator(mode="after")
    def _check_order(self) -> SizeRange:
        if not all(low <= typical <= high for low, typical, high in self._sides()):
            raise ValueError(f"{self} is not ordered: MIN <= OPT <= MAX, in height and in width")
        return self

    def includes(self, size: tuple[int, int]) -> bool:
        """Return whether both sides of (height, width) are in the range."""
        return all(low <= side <= high for side, (low, _, high) in zip(size, self._sides(), strict=True))

    @property
    def fixed_sides(self) -> tuple[int | None, int | None]:
        """Height and width, where only one is possible; None where it varies."""
        height, width = (low if low == high else None for low, _, high in self._sides())
        return height, width

    @property
    def corners(self) -> tuple[Size, ...]:
        """The sizes to verify: the one to optimise for, both ends, and the most oblong ones, each once."""
        (top, _, bottom), (left, _, right) = self._sides()
        return tuple(dict.fromkeys((self.opt, self.min, self.max, (top, right), (bottom, left))))

    def _sides(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        height, width = zip(self.min, self.opt, self.max, strict=True)
        return height, width

    def __str__(self) -> str:
        return ":".join(format_size(size) for size in (self.min, self.opt, self.max))


def format_size(size: tuple[int, int]) -> str:
    """Return a size as users write it: HxW."""
    return f"{size[0]}x{size[1]}"


def parse_image_size(text: str) -> Any:
    """Parse `224` or `HxW` as [height, width], and `MIN:OPT:MAX` of these as a mapping.

    Raises:
        ValueError: it is none of these, or a side is 0.
    """
    sizes = [_parse_size(part) for part in text.strip().lower().split(":")]
    if None in sizes or len(sizes) not in (1, 3):
        raise ValueError(f"{text!r} is not a size: give {SIZE_FORMS}")
    return sizes[0] if len(sizes) == 1 else dict(zip(("min", "opt", "max"), sizes, strict=True))


def _parse_size(text: str) -> list[int] | None:
    match = _SIZE.fullmatch(text)
    return None if match is None else [int(match[1]), int(match[2] or match[1])]


def _read_forms(value: Any) -> Any:
    """Bring every form to a list or a mapping. A range with equal ends is one size."""
    value = parse_image_size(value) if isinstance(value, str) else value
    is_range = isinstance(value, dict) and value.keys() == {"min", "opt", "max"}
    return value["min"] if is_range and value["min"] == value["opt"] == value["max"] else value


def _choose_form(value: Any) -> str:
    return "<range>" if isinstance(value, (dict, SizeRange)) else "<size>"  # see `frozen.TAG`


ImageSize = Annotated[
    Annotated[Size, Tag("<size>")] | Annotated[SizeRange, Tag("<range>")],
    Discriminator(_choose_form),
    BeforeValidator(_read_forms),
]
"""One size as (height, width), or a range. Also read from `HxW` and `MIN:OPT:MAX`."""
