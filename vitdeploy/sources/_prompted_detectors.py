"""Detectors that find what texts name (OWLv2, Grounding DINO), with fixed texts in place of their text tower."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.errors import SourceError
from vitdeploy.sources._tokens import Texts
from vitdeploy.sources._two_towers import embed_prompts, remove_unused

_OWL_PARTS = ("owlvit", "owlv2")
_MASKS = "generate_masks_with_special_tokens_and_transfer_map"
"""The function of transformers that finds the phrases in a text. The exporters cannot export it (cummax)."""

_CHECK = "torch_compilable_check"
"""The function of transformers that checks shapes in the graph. The exporters have no operator for it."""


class PromptedOwl(nn.Module):
    """OWL-ViT or OWLv2 for fixed texts."""

    queries: Tensor

    def __init__(self, model: nn.Module, queries: Tensor) -> None:
        """Keep the unit vectors of the texts, (texts, size)."""
        super().__init__()
        self.model = model
        self.register_buffer("queries", queries)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return `logits` (batch, patches, texts), and `pred_boxes` (batch, patches, 4)."""
        model: Any = self.model
        features, _ = model.image_embedder(pixel_values=pixel_values)
        patches = features.flatten(1, 2)
        queries = self.queries.expand(len(pixel_values), -1, -1)
        logits, _ = model.class_predictor(patches, queries, None)
        return {"logits": logits, "pred_boxes": model.box_predictor(patches, features)}


class PromptedGrounding(nn.Module):
    """Grounding DINO for one fixed text. The score of a prompt is that of its best token."""

    ids: Tensor
    mask: Tensor
    positions: Tensor
    members: Tensor

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor, members: Tensor) -> None:
        """Keep the text.

        Args:
            model: the detector, whose text backbone gives what it said of the text.
            ids: the tokens, (1, tokens).
            mask: which tokens see one another, (1, tokens, tokens).
            positions: the place of each token in its phrase, (1, tokens).
            members: the tokens of each prompt, (prompts, most tokens of a prompt); of shorter ones the last repeats.
        """
        super().__init__()
        self.model = model
        for name, value in (("ids", ids), ("mask", mask), ("positions", positions), ("members", members)):
            self.register_buffer(name, value, persistent=True)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return `logits` (batch, queries, prompts), and `pred_boxes` (batch, queries, 4)."""
        batch = len(pixel_values)
        ids = self.ids.expand(batch, -1)
        with self._fixed_masks(batch):
            answer = self.model(
                pixel_values=pixel_values, input_ids=ids, attention_mask=torch.ones_like(ids), pixel_mask=pixel_mask
            )
        scores = answer["logits"][..., self.members].amax(dim=-1)
        return {"logits": scores, "pred_boxes": answer["pred_boxes"]}

    @contextmanager
    def _fixed_masks(self, batch: int) -> Iterator[None]:
        """Let the model take the masks that are known, in place of finding them in the tokens, and check no shapes."""
        model: Any = self.model
        names = vars(sys.modules[type(model.model).__module__])
        own = {name: names[name] for name in (_MASKS, _CHECK) if name in names}
        fixed = self.mask.expand(batch, -1, -1), self.positions.expand(batch, -1)
        replaced: dict[str, Any] = {_MASKS: lambda *_, **__: fixed, _CHECK: lambda *_, **__: None}
        names.update({name: replaced[name] for name in own})
        try:
            yield
        finally:
            names.update(own)


class _SaidOfText(nn.Module):
    """The answer of a text backbone to one text."""

    hidden: Tensor

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.register_buffer("hidden", hidden)

    def forward(self, input_ids: Tensor, *_: Any, **__: Any) -> Any:
        """Return the same for every image of a batch."""
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=self.hidden.expand(len(input_ids), -1, -1))


def find_freeze(module: nn.Module) -> Callable[..., nn.Module] | None:
    """Return the function that freezes the texts of a detector; None if it is no such detector."""
    if hasattr(module, "class_predictor") and any(hasattr(module, part) for part in _OWL_PARTS):
        return freeze_owl
    inner = getattr(module, "model", None)
    has_backbone = hasattr(inner, "text_backbone") and hasattr(module, "class_embed")
    return freeze_grounded if has_backbone and _MASKS in vars(sys.modules[type(inner).__module__]) else None


def freeze_owl(module: nn.Module, texts: Texts) -> PromptedOwl:
    """Return a detector of the prompts, without text tower. Several templates are averaged as for CLIP.

    Raises:
        SourceError: a prompt is too long.
    """
    towers = next(getattr(module, part) for part in _OWL_PARTS if hasattr(module, part))
    detector = PromptedOwl(module, embed_prompts(towers, texts))
    remove_unused(detector, texts.image)
    return detector


def freeze_grounded(module: nn.Module, texts: Texts) -> PromptedGrounding:
    """Return a detector of the prompts, without text backbone. They become one text, such as "a cat. a dog.".

    Raises:
        SourceError: there are several templates, the text is too long, or a prompt has no token.
    """
    if len(texts.templates) > 1:
        raise SourceError(
            f"{texts.model} reads all prompts as one text, so templates cannot be averaged", fix="Give one --template."
        )
    text, places = "", []
    for prompt in texts.prompts:
        phrase = texts.fill(prompt)[0].strip().rstrip(".")
        places.append((len(text), len(text) + len(phrase)))
        text += f"{phrase}. "
    encoded, spans = texts.tokens.encode_spans(text.strip(), places)
    for prompt, span in zip(texts.prompts, spans, strict=True):
        if not span:
            raise SourceError(f"the tokenizer of {texts.model} has no token for {prompt!r}", fix="Reword that prompt.")
    longest = max(map(len, spans))
    members = torch.tensor([span + span[-1:] * (longest - len(span)) for span in spans])
    ids = encoded["input_ids"]
    mask, positions = _read_backbone(module, ids, encoded.get("token_type_ids"))
    _leave_out_padding(module, ids.shape[1])
    return PromptedGrounding(module, ids, mask, positions, members)


def _read_backbone(module: nn.Module, ids: Tensor, types: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run the text backbone, put its answer into its place, and return the masks and positions of the tokens."""
    inner: Any = getattr(module, "model")  # noqa: B009  torch types attributes as tensors or modules
    find_masks = vars(sys.modules[type(inner).__module__])[_MASKS]
    with torch.inference_mode():
        mask, positions = find_masks(ids, special_tokens=inner.special_tokens)
        types = torch.zeros_like(ids) if types is None else types
        answer = inner.text_backbone(ids, mask[:, None], types, positions, return_dict=True)
        hidden = inner.text_projection(answer.last_hidden_state)
    inner.text_backbone, inner.text_projection = _SaidOfText(hidden.clone()), nn.Identity()
    return mask.clone(), positions.clone()


def _leave_out_padding(module: nn.Module, tokens: int) -> None:
    """Let the scores have as many columns as the text has tokens.

    Those behind them are filled up with minus infinity, which FP16 and INT8 have no range for.
    """
    for part in module.modules():
        if hasattr(part, "max_text_len"):
            setattr(part, "max_text_len", tokens)  # noqa: B010  torch types attributes as tensors or modules
