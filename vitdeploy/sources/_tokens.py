"""The tokenizer of a transformers checkpoint, and prompts as its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import SourceError
from vitdeploy.recipe import fill_templates

if TYPE_CHECKING:
    from torch import Tensor

_FILES = ("tokenizer*", "vocab*", "spiece*", "sentencepiece*", "*.model", "*.tiktoken")
"""The names of files that have a vocabulary. Without one transformers builds an empty tokenizer, and says nothing."""
_SETTINGS = "tokenizer_config.json"
_SHOWN = 60
"""Characters of a prompt in a message."""
_PADDED = ("siglip", "siglip2", "owlvit", "owlv2")
"""Families whose text tower was trained on texts that are padded to its length."""


class Tokens:
    """The tokenizer of a model and the length that its text tower takes."""

    def __init__(self, model: str, folder: str, *, local: bool, family: str, limit: int) -> None:
        """Load the tokenizer in a folder or hub repository.

        Args:
            model: the model in messages.
            folder: the folder, or the name on the hub.
            local: True for a folder.
            family: the `model_type` of the model.
            limit: the most tokens that the text tower takes.

        Raises:
            SourceError: there is none, or it cannot be loaded.
        """
        import transformers

        fix = "Save the tokenizer there too: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)."
        if local and not _has_vocabulary(Path(folder)):
            raise SourceError(f"{model} has no tokenizer, which --prompts needs", fix=fix)
        try:
            auto: Any = transformers.AutoTokenizer
            self._tokenizer = auto.from_pretrained(folder, local_files_only=local, trust_remote_code=False)
        except Exception as error:  # noqa: BLE001  hub, JSON and the classes of tokenizers have errors of their own
            reason = " ".join(str(error).split())[:200]
            raise SourceError(f"the tokenizer of {model} cannot be loaded: {reason}", fix=fix) from None
        self._model, self._limit = model, limit
        self._padding: bool | str = "max_length" if family in _PADDED else True

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the tokens of texts as the text tower takes them: (texts, tokens) each.

        Raises:
            SourceError: a text is longer than the tower takes.
        """
        for text in texts:
            self._check(text, len(self._tokenizer(text)["input_ids"]))
        answer = self._tokenizer(
            list(texts), padding=self._padding, max_length=self._limit, truncation=True, return_tensors="pt"
        )
        return dict(answer)

    def encode_spans(self, text: str, places: Sequence[tuple[int, int]]) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Return the tokens of one text, (1, tokens) each, and for each place in it the indices of its tokens.

        Args:
            text: the text.
            places: for each part of it the first character, and the one after the last.

        Raises:
            SourceError: the text is longer than the tower takes, or the tokenizer does not say where tokens come from.
        """
        self._check(text, len(self._tokenizer(text)["input_ids"]))
        if not getattr(self._tokenizer, "is_fast", False):
            raise SourceError(
                f"the tokenizer of {self._model} does not say which tokens a prompt has",
                fix="Save a fast tokenizer there (tokenizer.json).",
            )
        answer = dict(self._tokenizer(text, return_offsets_mapping=True, return_tensors="pt"))
        offsets = answer.pop("offset_mapping")[0].tolist()
        spans = [
            [index for index, (start, end) in enumerate(offsets) if first <= start < end <= last]
            for first, last in places
        ]
        return answer, spans

    def _check(self, text: str, count: int) -> None:
        if count > self._limit:
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            raise SourceError(
                f"the prompt {shown!r} has {count} tokens, and the text tower of {self._model} takes {self._limit}",
                fix="Shorten it.",
            )


@dataclass(frozen=True)
class Texts:
    """The prompts of a model, and what it takes to freeze them.

    Attributes:
        model: the model in messages.
        tokens: its tokenizer.
        prompts: the prompts.
        templates: see `ModelSpec`.
        image: an image that the model takes, (1, channels, height, width).
    """

    model: str
    tokens: Tokens
    prompts: tuple[str, ...]
    templates: tuple[str, ...]
    image: Tensor

    def fill(self, prompt: str) -> list[str]:
        """Return a prompt in each template."""
        return fill_templates(prompt, self.templates)


def _has_vocabulary(folder: Path) -> bool:
    return any(file.name != _SETTINGS for pattern in _FILES for file in folder.glob(pattern))
