"""Models that segment what points and boxes name (SAM, SAM 2, EdgeTAM), split into image encoder and mask decoder.

The encoder sees the image alone, so it runs once for each image. The decoder has the prompt encoder in it, and runs
once for each prompt. Nothing is remembered from one image to the next: the memory that SAM 2 has for videos is not
exported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.data.point_prompts import BACKGROUND, BOTTOM_RIGHT, EMPTY, FOREGROUND, TOP_LEFT, Prompt
from vitdeploy.session import Array

EMBEDDINGS = "image_embeddings"
_FEATURES = ("high_res_features_0", "high_res_features_1")
_NO_POINT = -1
"""The label of the token that says that there are no more points."""
_HIDDEN = -3e4
"""Added to the score of a key that must not be read: e to that power is 0, and float16 can hold it."""


class ImageEncoder(nn.Module):
    """The part of a promptable model that sees the image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        whole: Any = model
        self.vision_encoder = whole.vision_encoder
        self.has_features = has_features(model)
        if self.has_features:
            self.conv_s0, self.conv_s1 = whole.mask_decoder.conv_s0, whole.mask_decoder.conv_s1
            self.no_memory_embedding = whole.no_memory_embedding

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return `image_embeddings` (batch, size, h, w), and maps of two and four times the sides if there are any."""
        answer = self.vision_encoder(pixel_values)
        if not self.has_features:
            return {EMBEDDINGS: answer[0]}
        fine, middle, *_, coarse = answer.fpn_hidden_states
        embeddings = coarse + self.no_memory_embedding.reshape(1, -1, 1, 1)
        return {EMBEDDINGS: embeddings, _FEATURES[0]: self.conv_s0(fine), _FEATURES[1]: self.conv_s1(middle)}


class MaskDecoder(nn.Module):
    """The part of a promptable model that sees the prompt: three masks and their scores.

    The number of points is fixed, so that all shapes are. Empty slots are hidden from attention, so the answer is that
    to the points alone; transformers, whose padding is a token of zeros, gives another one as soon as it pads.
    """

    positions: Tensor
    dense: Tensor
    kinds: Tensor
    table: Tensor
    corner: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        whole: Any = model
        prompts = whole.prompt_encoder
        self.embedding = prompts.shared_embedding
        self.mask_decoder = whole.mask_decoder
        self._side = float(prompts.input_image_size)
        self._always_ends = has_features(model)
        """SAM 2 ends every prompt with the token for "no more points", SAM only one without a box."""
        with torch.no_grad():
            positions = whole.get_image_wide_positional_embeddings()
            dense = prompts.no_mask_embed.weight.reshape(1, -1, 1, 1)
            tokens = _read_tokens(prompts)
        self.register_buffer("positions", positions.clone())
        self.register_buffer("dense", dense.expand(-1, -1, *positions.shape[2:]).clone())
        labels = (_NO_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT)
        self.register_buffer("kinds", torch.tensor(labels, dtype=torch.float32))
        self.register_buffer("table", torch.cat([prompts.not_a_point_embed.weight, *tokens]).detach().clone())
        self.register_buffer("corner", torch.tensor([float(TOP_LEFT)]))
        self._hidden = _HiddenKeys()
        for layer in self.mask_decoder.transformer.layers:  # where keys are tokens, not the image
            layer.self_attn = _MaskedAttention(layer.self_attn, self._hidden)
            layer.cross_attn_image_to_token = _MaskedAttention(layer.cross_attn_image_to_token, self._hidden)

    def decode(self, embeddings: Tensor, features: list[Tensor], coords: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `pred_masks` (1, 3, h, w) as logits, `iou_scores` (1, 3), and SAM 2's `object_score_logits` (1, 1).

        Args:
            embeddings: of one image.
            features: the encoder's maps of higher resolution; none for SAM.
            coords: x and y in pixels of the model's input, (1, slots, 2).
            labels: (1, slots); see `vitdeploy.data.point_prompts`.
        """
        sparse, hidden = self._embed(coords, labels)
        further = {"high_resolution_features": features} if features else {}
        with self._hidden.set(hidden):
            masks, scores, *rest = self.mask_decoder(
                image_embeddings=embeddings,
                image_positional_embeddings=self.positions,
                sparse_prompt_embeddings=sparse[:, None],
                dense_prompt_embeddings=self.dense,
                multimask_output=True,
                **further,
            )
        outputs = {"pred_masks": masks[:, 0], "iou_scores": scores[:, 0]}
        return outputs if not features else {**outputs, "object_score_logits": rest[-1][:, 0]}

    def _embed(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return a token for each slot and for the end, (1, slots + 1, size), and what to add to scores of all keys."""
        positions = self.embedding((coords[:, None] + 0.5) / self._side)[:, 0]
        is_point = (labels >= BACKGROUND).to(positions.dtype)[..., None]
        one_hot = (labels[..., None] == self.kinds).to(positions.dtype)
        tokens = positions * is_point + one_hot @ self.table
        end = self.table[:1].expand(len(tokens), 1, -1)
        hides_end = torch.zeros_like(labels[:, :1])
        if not self._always_ends:
            hides_end = (labels == self.corner).to(labels.dtype).amax(dim=1, keepdim=True)
        hidden = torch.cat([(labels == EMPTY).to(labels.dtype), hides_end], dim=1) * _HIDDEN
        own = torch.zeros_like(hidden[:, :1]).expand(-1, self._own_tokens)
        return torch.cat([tokens, end], dim=1), torch.cat([own, hidden], dim=1)[:, None, None, :]

    @property
    def _own_tokens(self) -> int:
        """The number of tokens before those of the prompt: for the masks, their scores and, in SAM 2, the object."""
        return int(self.mask_decoder.num_mask_tokens) + (2 if self._always_ends else 1)


class PlainMaskDecoder(MaskDecoder):
    """The decoder of SAM."""

    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor) -> dict[str, Tensor]:
        """See `decode`."""
        return self.decode(image_embeddings, [], point_coords, point_labels)


class FineMaskDecoder(MaskDecoder):
    """The decoder of SAM 2 and EdgeTAM, which reads maps of higher resolution too."""

    def forward(
        self,
        image_embeddings: Tensor,
        high_res_features_0: Tensor,
        high_res_features_1: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
    ) -> dict[str, Tensor]:
        """See `decode`."""
        features = [high_res_features_0, high_res_features_1]
        return self.decode(image_embeddings, features, point_coords, point_labels)


class _HiddenKeys:
    """The scores that the running decoder adds to those of its tokens as keys; None outside of a run."""

    scores: Tensor | None = None

    def set(self, scores: Tensor) -> _HiddenKeys:
        """Choose what a `with` block adds."""
        self._next = scores
        return self

    def __enter__(self) -> None:
        self.scores = self._next

    def __exit__(self, *_: object) -> None:
        self.scores = None


class _MaskedAttention(nn.Module):
    """Attention of transformers whose keys are the tokens of a prompt, some of them hidden."""

    def __init__(self, attention: nn.Module, hidden: _HiddenKeys) -> None:
        super().__init__()
        self.attention = attention
        self._keys = hidden

    def forward(self, query: Tensor, **inputs: Any) -> Any:
        """Run the attention on (batch, 1, tokens, size)."""
        scores = self._keys.scores
        if scores is not None:
            scores = scores.expand(-1, -1, query.shape[2], -1)  # ONNX's operator has a row for each query
        return self.attention(query=query, **{**inputs, "attention_similarity": scores})


def has_features(model: nn.Module) -> bool:
    """Return True if the decoder reads maps of higher resolution from the encoder."""
    return hasattr(getattr(model, "mask_decoder", None), "conv_s0")


def make_decoder(model: nn.Module) -> MaskDecoder:
    """Return the decoder of a promptable model."""
    return FineMaskDecoder(model) if has_features(model) else PlainMaskDecoder(model)


def run_whole(model: nn.Module, pixels: Array, prompt: Prompt) -> dict[str, Array]:
    """Run the model as transformers has it, on one image and one prompt in pixels of its input.

    Returns:
        The outputs of the decoder by name.
    """
    given: dict[str, Tensor] = {}
    if prompt.points:
        given["input_points"] = torch.tensor(prompt.points, dtype=torch.float32)[None, None]
        given["input_labels"] = torch.tensor(prompt.foreground)[None, None].to(torch.int64)
    if prompt.box is not None:
        given["input_boxes"] = torch.tensor(prompt.box, dtype=torch.float32)[None, None]
    with torch.inference_mode():
        answer = model(pixel_values=torch.from_numpy(pixels), **given)
    names = ("pred_masks", "iou_scores", "object_score_logits")
    return {name: answer[name][:, 0].numpy() for name in names if name in answer}


def _read_tokens(prompts: Any) -> Iterator[Tensor]:
    """Yield the token of each label from 0 to 3, (1, size)."""
    table = prompts.point_embed
    if isinstance(table, nn.Embedding):
        return (table.weight[label : label + 1] for label in range(4))
    return (one.weight for one in list(table)[:4])
