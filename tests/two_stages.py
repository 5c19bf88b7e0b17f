"""A detector in two stages, in small: its rows are in the order of scores that may be nearly equal."""

from __future__ import annotations

import torch
from torch import nn

ROWS, CLASSES = 16, 5


class TwoStages(nn.Module):
    """The tokens with the best scores, a decoder that attends among them, classes and boxes."""

    def __init__(self, gather: str = "elements") -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 8, 8)
        self.score, self.qkv = nn.Linear(32, 1), nn.Linear(32, 96)
        self.classes, self.boxes = nn.Linear(32, CLASSES), nn.Linear(32, 4)
        self.norm = nn.LayerNorm(32)
        self.gather = gather

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        t = self.embed(x).flatten(2).transpose(1, 2)
        best = self.score(t)[..., 0].topk(ROWS, 1).indices
        if self.gather == "elements":
            rows = t.gather(1, best[..., None].expand(-1, -1, 32))
        else:  # a batch offset and one axis for all images, as deformable detectors write it
            first = torch.arange(x.shape[0])[:, None] * t.shape[1]
            rows = t.flatten(0, 1)[(best + first).flatten()].view(x.shape[0], ROWS, 32)
        q, k, v = self.qkv(self.norm(rows)).reshape(x.shape[0], ROWS, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
        rows = rows + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.classes(rows), self.boxes(rows).sigmoid(), t.mean(1)


class NearTies(TwoStages):
    """All tokens are selected, with scores that differ in the last bits only. `wrong`: what is exported moves a box."""

    def __init__(self, *, wrong: bool = False) -> None:
        from tests.graphs import redrawn

        super().__init__()
        self.embed = nn.Conv2d(3, 32, 16, 16)
        redrawn(self)
        with torch.no_grad():
            self.score.weight.mul_(1e-6)
        self.wrong = wrong
        self.vitdeploy_preprocess = {"size": (64, 64)}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        logits, boxes, _ = super().forward(x)
        is_exported = torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()
        if self.wrong and is_exported:
            boxes = torch.cat([boxes[:, :1] * 0.5, boxes[:, 1:]], 1)
        return {"logits": logits, "pred_boxes": boxes}


def near_ties() -> nn.Module:
    """Return the detector, for `python:FILE:near_ties`."""
    return NearTies().eval()


def wrong() -> nn.Module:
    """Return one whose exported graph has another box."""
    return NearTies(wrong=True).eval()
