"""The compiler's three lists: which passes they hold, in which order, and that each pass fires on a small model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from tests.graphs import HEADS, SIZE, dynamo, images, legacy, parsed, tiny_vit, tokens
from tests.onnx_files import sized_legacy, sized_vit
from vitdeploy import passes, plugins, precision, targets
from vitdeploy.artifact import PassRecord
from vitdeploy.graph.dialect import Dialect, FusedAttention
from vitdeploy.graph.model import Graph
from vitdeploy.graph.recognize import recognize
from vitdeploy.passes import Pass, order
from vitdeploy.passes.fold_preprocessing import FoldPreprocessing
from vitdeploy.passes.separate_qkv import SeparateQkv
from vitdeploy.progress import Silent
from vitdeploy.quantize import Calibration
from vitdeploy.recipe import PrecisionSpec

PIXELS = FoldPreprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)

RAISING = [
    "fix-size", "fix-batch", "raise-opset", "name-nodes", "fold-constants", "raise-softmax", "raise-layer-norm",
    "raise-gelu", "raise-linear", "raise-pointwise", "raise-unfold", "raise-attention", "hoist-moves", "merge-moves",
    "remove-dead",
]  # fmt: skip
FOLDING = [
    "fold-preprocessing", "fold-batch-norm", "fold-layer-scale", "hoist-pointwise", "merge-moves", "merge-linears",
    "merge-moves", "fold-attention-scale", "unpack-qkv", "drop-unread-tokens", "lower-col2im", "remove-dead",
]  # fmt: skip
NORMS = ["lower-group-norm", "lower-rms-norm"]
INTEGER = ["lower-integer-linears", "lower-block-weights"]


def names(listed: Iterable[Pass]) -> list[str]:
    return [p.name for p in listed]


def test_raising_holds_its_passes_in_order() -> None:
    assert names(order.raising(1, (32, 48))) == RAISING
    assert names(order.raising(1)) == RAISING[1:]
    assert names(order.raising()) == RAISING[2:]


@pytest.mark.parametrize("pixels", [PIXELS, None])
@pytest.mark.parametrize("packed_qkv", [False, True])
def test_folding_holds_its_passes_in_order(pixels: FoldPreprocessing | None, packed_qkv: bool) -> None:
    left_out = {*([] if pixels else ["fold-preprocessing"]), *(["unpack-qkv"] if packed_qkv else [])}
    assert names(order.folding(pixels, packed_qkv=packed_qkv, lacks=["Col2Im"])) == [
        name for name in FOLDING if name not in left_out
    ]
    assert "lower-col2im" not in names(order.folding(pixels, packed_qkv=packed_qkv))


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (Dialect(20, "primitives"), ["lower-primitives", "merge-moves", *NORMS]),
        (
            Dialect(20, "primitives", splits_joined_codes=True, overwrites_queries=True, norms_of_lists=True),
            ["lower-primitives", "merge-moves", *NORMS, "flatten-norms", "shield-moves", "flatten-joined"],
        ),
        (Dialect(20, "multihead"), ["lower-multihead", "merge-moves", *NORMS]),
        (Dialect(20, "multihead", "integer"), ["lower-multihead", "merge-moves", *NORMS, *INTEGER]),
        (
            Dialect(20, "primitives", fused_attention=FusedAttention(16, 64, 8)),
            ["fit-attention", "lower-primitives", "merge-moves", *NORMS],
        ),
    ],
)
def test_lowering_holds_the_passes_of_a_dialect_in_order(dialect: Dialect, expected: list[str]) -> None:
    assert names(order.lowering(dialect)) == [
        "fold-norm-scale", "lower-pointwise", *expected, "remove-dead", "declare-opset",
    ]  # fmt: skip


HEAD_SIZE = 12
"""No multiple of 8, so TensorRT's fused kernel needs padding."""

WIDTH = 2 * HEAD_SIZE


class NormedLinear(nn.Module):
    """A linear and its batch normalization over the matrix of all tokens, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, channels)."""
        y = self.linear(x)
        return self.norm(y.flatten(0, 1)).reshape_as(y)


class ScaledNorm(nn.Module):
    """A LayerNorm with a factor for each channel behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.factor = nn.LayerNorm(WIDTH), nn.Parameter(torch.linspace(0.5, 2, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, channels)."""
        return self.norm(x) * self.factor


class Patches(nn.Module):
    """Norms of two kinds over the image, which is taken apart and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.group, self.rms = nn.GroupNorm(1, 3), nn.RMSNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 32, 32)."""
        patches = nn.functional.unfold(self.rms(self.group(x)), 2, stride=2)
        return nn.functional.fold(patches, (32, 32), 2, stride=2)


def vit_with_everything() -> nn.Module:
    """A ViT with batch normalization, LayerScale, a factor behind a norm, and a class token."""
    from timm.models.vision_transformer import VisionTransformer

    module = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=WIDTH, depth=1, num_heads=2, num_classes=10, init_values=0.5
    )
    module.norm_pre, module.norm = NormedLinear(), ScaledNorm()
    return module.eval()


COMPILED = {
    "openvino": ["fp32"],
    "onnxruntime": ["int8", "int8-weights"],
    "tensorrt": ["fp16"],
}
"""The targets and precisions that together need every pass."""


class ChannelsFirst(nn.Module):
    """An attention between 1×1 convolutions, with a batch norm behind that of q, k and v, and a 1×1 MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, WIDTH, 8, 8), nn.Conv2d(WIDTH, 3 * WIDTH, 1)
        self.norm, self.proj, self.mlp = nn.BatchNorm2d(3 * WIDTH), nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) to (batch, 10, height / 8, width / 8)."""
        x = self.stem(x)
        q, k, v = self.norm(self.qkv(x)).reshape(1, 2, 3 * HEAD_SIZE, 16).split(HEAD_SIZE, 2)
        y = (v @ (q.transpose(2, 3) @ k).softmax(-1).transpose(2, 3)).reshape(1, WIDTH, 4, 4)
        return self.mlp(torch.relu(x + self.proj(y)))  # type: ignore[no-any-return]


class Enlarged(nn.Module):
    """A 1×1 convolution before a map is enlarged, and one behind it, as in SegFormer's head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project, self.fuse = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 32, 32) to (batch, 8, 8, 8)."""
        y = self.project(torch.relu(self.stem(x)))
        return torch.relu(self.fuse(nn.functional.interpolate(y, (8, 8), mode="bilinear")))


class Attending(nn.Module):
    """Self-attention by a module of PyTorch."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.attention(x, x, x)[0]
        return y


@pytest.fixture(scope="module")
def fired() -> Counter[tuple[str, str]]:
    """How often each pass of each list fired, over six models and every dialect."""
    counts: Counter[tuple[str, str]] = Counter()

    def count(phase: str, records: Iterable[PassRecord]) -> None:
        for record in records:
            counts[phase, record.name] += record.fired

    count("raising", passes.run(order.raising(1), parsed(dynamo(tiny_vit(), images()))))
    # Opset 14 has no LayerNormalization and no Gelu: both are written out.
    raised = parsed(legacy(vit_with_everything(), images(2), opset=14, dynamic=True))
    count("raising", passes.run(order.raising(1), raised))
    # All sizes vary, and up to opset 12 a Softmax takes a matrix.
    count("raising", passes.run(order.raising(1, (32, 48)), parsed(sized_legacy(sized_vit(fused=False), 11))))
    # Heads that are merged with the batch, as torch.nn.MultiheadAttention writes them.
    heads = nn.MultiheadAttention(HEADS * SIZE, HEADS, batch_first=True).eval()
    count("raising", passes.run(order.raising(1), parsed(dynamo(Attending(heads), tokens(), opset=20))))
    channels_first = parsed(legacy(ChannelsFirst().eval(), images(), opset=17))
    count("raising", passes.run(order.raising(1), channels_first))
    batches = [images()]
    calibration = Calibration(lambda: iter(batches), 1, 1, "test", "digest")
    for name, kinds in COMPILED.items():
        dialect = plugins.find(targets, name, targets.Target)().dialect()
        folded = Graph(raised.model.clone())
        count("folding", passes.run(order.folding(PIXELS, packed_qkv=dialect.packed_qkv), folded))
        for kind in kinds:
            spec = PrecisionSpec.model_validate({"kind": kind, "smooth_alpha": 0.5})
            graph = precision.quantize(folded, recognize(folded, {}), spec, dialect, calibration, Silent()).graph
            count("lowering", passes.run(order.lowering(dialect), graph))
    count("folding", passes.run(order.folding(PIXELS), channels_first))
    count("lowering", passes.run(order.lowering(Dialect(20, "primitives")), channels_first))
    enlarged = parsed(dynamo(Enlarged().eval(), images(), opset=20))
    count("raising", passes.run(order.raising(1), enlarged))
    count("folding", passes.run(order.folding(), enlarged))
    patches = parsed(dynamo(Patches(), images()))
    count("raising", passes.run(order.raising(1), patches))
    count("folding", passes.run(order.folding(lacks=["Col2Im"]), patches))
    count("lowering", passes.run(order.lowering(Dialect(20, "primitives")), patches))
    return counts


def test_a_safe_form_leaves_nothing_without_a_reader() -> None:
    assert names(order.securing(SeparateQkv())) == ["separate-qkv", "remove-dead"]


LISTS = {
    "raising": RAISING,
    "folding": FOLDING,
    "lowering": [
        "fold-norm-scale", "lower-pointwise", "fit-attention", "lower-multihead", "lower-primitives", "merge-moves",
        *NORMS, *INTEGER, "remove-dead", "declare-opset",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("phase", "name"), [(phase, name) for phase, listed in LISTS.items() for name in listed])
def test_every_pass_has_work_to_do(phase: str, name: str, fired: Counter[tuple[str, str]]) -> None:
    assert fired[phase, name] > 0
