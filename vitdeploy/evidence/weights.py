"""The part of a checkpoint that became the model's weights."""

from __future__ import annotations

from vitdeploy.evidence.fact import Fact


class CheckpointUse(Fact):
    """The part of a checkpoint that was loaded, and what the model took from it.

    Attributes:
        file: its name, without the folder.
        key: the keys that lead to the state dict, joined by dots; empty if the file itself is one.
        others: the keys of the other state dicts in it, which were not used.
        prefix: what was removed from the start of every key, such as "module.".
        left_out: the entries without that prefix, which are not the model's.
        classes: the number of outputs of its head, if the model was built for that number because of it.
        size: height and width that its position embedding is for, if the model was built for them because of it.
        resampled: True if timm or torchvision then resampled the position embedding to another size.
    """

    file: str
    key: str = ""
    others: tuple[str, ...] = ()
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    classes: int | None = None
    size: tuple[int, int] | None = None
    resampled: bool = False

    def describe(self) -> str:
        """Return one line: the part of the file, and what the model took from it."""
        parts = [f"weights from {self.key!r} of {self.file}" if self.key else f"weights from {self.file}"]
        if self.others:
            parts.append(f"not from {', '.join(map(repr, self.others))}")
        if self.prefix:
            parts.append(f"keys without {self.prefix!r}")
        if self.left_out:
            first, *more = map(repr, self.left_out)
            parts.append(f"without {first}{f' and {len(more)} more entries' if more else ''}")
        if self.classes is not None:
            parts.append(f"{self.classes} classes, as its head has")
        if self.size is not None:
            size = f"{self.size[0]}x{self.size[1]}"
            parts.append(f"position embedding of {size}{', resampled' if self.resampled else ''}")
        return "; ".join(parts)
