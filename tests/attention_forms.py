"""Attention of every rank and form that models write, and one small ViT with all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

WIDTH, HEADS, SIZE, TOKENS, SIDE = 96, 3, 32, 16, 4
S = SIZE**-0.5
Tensor = torch.Tensor


class Block(nn.Module):
    """q, k and v of `Site`s, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.query = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.rows, self.columns = (nn.Parameter(torch.randn(SIDE, SIDE, SIZE)) for _ in range(2))
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.tokens_first = nn.MultiheadAttention(WIDTH, HEADS)

    def heads(self, x: Tensor) -> Tensor:
        """(batch, heads, tokens, size)."""
        return x.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)

    def merged(self, x: Tensor) -> Tensor:
        """(batch · heads, tokens, size), as CLIP, DETR and SAM split it."""
        return self.heads(x).reshape(x.shape[0] * HEADS, -1, SIZE)

    def unmerged(self, y: Tensor, batch: int) -> Tensor:
        return self.o(y.view(batch, HEADS, -1, SIZE).transpose(1, 2).flatten(2))

    def positions(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """SAM's decomposed relative positions for the rows and columns of keys."""
        grid = q.unflatten(-2, (SIDE, SIDE))
        high = torch.einsum("...yxc,ykc->...yxk", grid, self.rows)
        return high, torch.einsum("...yxc,xkc->...yxk", grid, self.columns)


Form = Callable[[Block, Tensor], Tensor]


def torch_default(m: Block, x: Tensor) -> Tensor:
    return m.mha(x, x, x)[0]


def torch_tokens_first(m: Block, x: Tensor) -> Tensor:
    t = x.transpose(0, 1)
    return m.tokens_first(t, t, t)[0].transpose(0, 1)


def torch_pooling(m: Block, x: Tensor) -> Tensor:
    """SigLIP's head: one learned query for each image."""
    return m.mha(m.query.repeat(x.shape[0], 1, 1), x, x)[0]


def bmm(m: Block, x: Tensor) -> Tensor:
    q, k, v = (m.merged(f(x)) for f in (m.q, m.k, m.v))
    return m.unmerged(torch.bmm(torch.bmm(q * S, k.transpose(1, 2)).softmax(-1), v), x.shape[0])


def bmm_mask(m: Block, x: Tensor) -> Tensor:
    """CLIP of transformers up to 4.4x adds its mask in a view with heads."""
    q, k, v = (m.merged(f(x)) for f in (m.q, m.k, m.v))
    scores = torch.bmm(q * S, k.transpose(1, 2)).view(x.shape[0], HEADS, TOKENS, TOKENS) + MASK
    return m.unmerged(torch.bmm(scores.view(x.shape[0] * HEADS, TOKENS, TOKENS).softmax(-1), v), x.shape[0])


def bmm_mask_of_image(m: Block, x: Tensor) -> Tensor:
    """The same with a mask that depends on the image: (batch, 1, 1, keys). The softmax has the heads."""
    q, k, v = (m.merged(f(x)) for f in (m.q, m.k, m.v))
    scores = (
        torch.bmm(q * S, k.transpose(1, 2)).view(x.shape[0], HEADS, TOKENS, TOKENS) - x.mean(-1)[:, None, None].relu()
    )
    return m.unmerged(torch.bmm(scores.softmax(-1).view(x.shape[0] * HEADS, TOKENS, TOKENS), v), x.shape[0])


def one_head(m: Block, x: Tensor) -> Tensor:
    return m.o((m.q(x) @ m.k(x).transpose(-2, -1) * WIDTH**-0.5).softmax(-1) @ m.v(x))


def one_head_sdpa(m: Block, x: Tensor) -> Tensor:
    return m.o(nn.functional.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x)))


def hiera(m: Block, x: Tensor) -> Tensor:
    """(batch, heads, windows, tokens, size)."""
    q, k, v = m.qkv(x).reshape(x.shape[0], -1, 4, 3, HEADS, SIZE).permute(3, 0, 4, 2, 1, 5).unbind(0)
    y = (q @ k.transpose(-2, -1) * S).softmax(-1) @ v
    return m.o(y.permute(0, 3, 2, 1, 4).flatten(1, 2).flatten(2))


def nest(m: Block, x: Tensor) -> Tensor:
    """(batch, windows, heads, tokens, size), with a bias for each window."""
    q, k, v = m.qkv(x).reshape(x.shape[0], 4, -1, 3, HEADS, SIZE).permute(3, 0, 1, 4, 2, 5).unbind(0)
    y = (q @ k.transpose(-2, -1) * S + WINDOWS).softmax(-1) @ v
    return m.o(y.transpose(2, 3).flatten(1, 2).flatten(2))


def hiera_bias(m: Block, x: Tensor) -> Tensor:
    """The same axes as Hiera's, with a bias for each head."""
    q, k, v = m.qkv(x).reshape(x.shape[0], -1, 4, 3, HEADS, SIZE).permute(3, 0, 4, 2, 1, 5).unbind(0)
    y = (q @ k.transpose(-2, -1) * S + MASK[:, :, None, :4, :4]).softmax(-1) @ v
    return m.o(y.permute(0, 3, 2, 1, 4).flatten(1, 2).flatten(2))


def three_leading(m: Block, x: Tensor) -> Tensor:
    """(batch, rows, columns, heads, tokens, size)."""
    q, k, v = m.qkv(x).reshape(x.shape[0], 2, 2, 4, 3, HEADS, SIZE).permute(4, 0, 1, 2, 5, 3, 6).unbind(0)
    return m.o(((q @ k.transpose(-2, -1) * S).softmax(-1) @ v).transpose(3, 4).flatten(1, 3).flatten(2))


def decomposed(m: Block, x: Tensor) -> Tensor:
    """MViTv2: height and width terms added to (batch, heads, rows, columns, rows, columns)."""
    q, k, v = (m.heads(f(x)) for f in (m.q, m.k, m.v))
    high, wide = m.positions(q)
    scores = ((q * S) @ k.transpose(-2, -1)).view(x.shape[0], HEADS, SIDE, SIDE, SIDE, SIDE)
    scores = scores + high[..., None] + wide[..., None, :]
    return m.unmerged(scores.view(x.shape[0], HEADS, TOKENS, TOKENS).softmax(-1) @ v, x.shape[0])


def segment_anything(m: Block, x: Tensor) -> Tensor:
    """The same in (batch · heads, rows, columns, rows, columns)."""
    q, k, v = (m.merged(f(x)) for f in (m.q, m.k, m.v))
    high, wide = m.positions(q)
    scores = ((q * S) @ k.transpose(-2, -1)).view(q.shape[0], SIDE, SIDE, SIDE, SIDE)
    scores = (scores + high[..., None] + wide[..., None, :]).view(q.shape[0], TOKENS, TOKENS)
    return m.unmerged(scores.softmax(-1) @ v, x.shape[0])


def channels_first(m: Block, x: Tensor) -> Tensor:
    """YOLO11: (batch, heads, size, tokens), and v by the transposed map."""
    q, k, v = m.qkv(x).transpose(1, 2).view(x.shape[0], HEADS, 3 * SIZE, TOKENS).split([SIZE] * 3, dim=2)
    y = v @ (q.transpose(-2, -1) @ k * S).softmax(-1).transpose(-2, -1)
    return m.o(y.reshape(x.shape[0], WIDTH, TOKENS).transpose(1, 2))


def pointwise(m: Block, x: Tensor) -> Tensor:
    """CoAtNet: all linears are 1×1 convolutions over a map of channels."""
    grid = x.transpose(1, 2).reshape(x.shape[0], WIDTH, 4, 4)
    qkv = nn.functional.conv2d(grid, m.qkv.weight[:, :, None, None], m.qkv.bias)
    q, k, v = qkv.view(x.shape[0], HEADS, 3 * SIZE, TOKENS).chunk(3, dim=2)
    y = (v @ (q.transpose(-2, -1) @ k * S).softmax(-1).transpose(-2, -1)).reshape(x.shape[0], WIDTH, 4, 4)
    y = nn.functional.conv2d(y, m.o.weight[:, :, None, None], m.o.bias)
    return y.flatten(2).transpose(1, 2)


MASK = torch.randn(1, 1, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0))
WINDOWS = torch.randn(1, 4, 1, 4, 4, generator=torch.Generator().manual_seed(1))


class Wrapped(Block):
    """A block that attends in one form."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)


def shared_keys(m: Block, x: Tensor) -> Tensor:
    """MobileNetV4: one head of keys and values for all heads of queries."""
    q, k, v = m.heads(m.q(x)), m.heads(m.k(x))[:, :1], m.heads(m.v(x))[:, :1]
    return m.unmerged(nn.functional.scaled_dot_product_attention(q, k, v), x.shape[0])


def five_axes(m: Block, x: Tensor) -> Tensor:
    """Twins: scaled_dot_product_attention on (batch, windows, heads, tokens, size)."""
    q, k, v = m.qkv(x).reshape(x.shape[0], 4, -1, 3, HEADS, SIZE).permute(3, 0, 1, 4, 2, 5).unbind(0)
    y = nn.functional.scaled_dot_product_attention(q, k, v)
    return m.o(y.transpose(2, 3).flatten(1, 2).flatten(2))


def differential(m: Block, x: Tensor) -> Tensor:
    """The difference of two attentions with the same values, the second times a learned factor."""
    (q, p), (k, j) = (m.heads(f(x)).chunk(2, -1) for f in (m.q, m.k))
    v = m.heads(m.v(x))
    attend = nn.functional.scaled_dot_product_attention
    return m.o((attend(q, k, v) - m.query[0, 0, 0] * attend(p, j, v)).transpose(1, 2).flatten(2))


FORMS: dict[Form, tuple[int, int]] = {
    torch_default: (HEADS, TOKENS),
    torch_tokens_first: (HEADS, TOKENS),
    torch_pooling: (HEADS, 1),
    bmm: (HEADS, TOKENS),
    bmm_mask: (HEADS, TOKENS),
    bmm_mask_of_image: (HEADS, TOKENS),
    one_head: (1, TOKENS),
    one_head_sdpa: (1, TOKENS),
    hiera: (HEADS, 4),
    hiera_bias: (HEADS, 4),
    nest: (HEADS, 4),
    three_leading: (HEADS, 4),
    decomposed: (HEADS, TOKENS),
    segment_anything: (HEADS, TOKENS),
    channels_first: (HEADS, TOKENS),
    pointwise: (HEADS, TOKENS),
    shared_keys: (HEADS, TOKENS),
    five_axes: (HEADS, 4),
}
"""Heads and queries of the canonical attention of each."""


class EveryForm(nn.Module):
    """A ViT at 32 x 32 whose blocks attend in the given forms, beside a frozen tower that no image reaches."""

    def __init__(self, *forms: Form) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 8, 8)
        self.blocks = nn.ModuleList(Wrapped(form) for form in forms)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(len(forms) + 1))
        self.prompt, self.tower = nn.Parameter(torch.randn(1, TOKENS, WIDTH)), Wrapped(bmm)
        self.head = nn.Linear(WIDTH, 10)
        self.vitdeploy_preprocess = {"size": (32, 32)}

    def forward(self, x: Tensor) -> Tensor:
        t = self.patch(x).flatten(2).transpose(1, 2)
        for norm, block in zip(self.norms, self.blocks, strict=False):
            t = t + block(norm(t))
        t = self.norms[-1](t) + self.tower(self.norms[0](self.prompt))
        return self.head(t.mean(1))


def every_form() -> nn.Module:
    """The ViT with all forms, for `python:FILE:every_form`."""
    from tests.graphs import redrawn

    return redrawn(EveryForm(*FORMS))


def differential_form() -> nn.Module:
    """A ViT with differential attention, for `python:FILE:differential_form`."""
    from tests.graphs import redrawn

    return redrawn(EveryForm(differential))
