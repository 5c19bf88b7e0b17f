"""Write `vitdeploy/assets/board.tar.xz`: the small models that `vitdeploy doctor --record` builds on a board.

    python -m benchmarks.board_models

Three models, in every precision of TensorRT, as `vitdeploy export` makes them: the graph, its sites, and one image with
the outputs of FP32. A board has neither torch nor onnx, so they are made here. Heads have 32 channels: a shape for
which builders have fused attention kernels.

A weight is -1, 0 or 1 times a power of two. It has no rounding error in FP16 and BF16, and the archive stays small.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import GRAPH, SITES
from vitdeploy.commands.board.models import ASSET, EXAMPLE, FACTS, MODELS, PRECISIONS, describe, to_image
from vitdeploy.commands.export import export
from vitdeploy.data.synthetic import coloured_noise
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.progress import Silent
from vitdeploy.session import Array

_SIZE = {"vit": 64, "window": 32, "rope": 64}
_CALIBRATION_IMAGES = 8


def vit() -> nn.Module:
    """A plain ViT: 65 tokens, two blocks."""
    return _redraw(VisionTransformer(64, 8, embed_dim=64, depth=2, num_heads=2, mlp_ratio=2.0, num_classes=16))


def window() -> nn.Module:
    """A Swin: windows of 16 tokens, the second block shifted, with bias tables and a mask."""
    return _redraw(
        SwinTransformer(32, 4, embed_dim=64, depths=(2,), num_heads=(2,), window_size=4, mlp_ratio=2.0, num_classes=16)
    )


def rope() -> nn.Module:
    """An EVA-02: rotary positions, 65 tokens, two blocks."""
    return _redraw(
        Eva(64, 8, 3, 16, embed_dim=64, depth=2, num_heads=2, mlp_ratio=2.0, use_rot_pos_emb=True, ref_feat_shape=8)
    )


_BUILDERS: Mapping[str, Callable[[], nn.Module]] = {"vit": vit, "window": window, "rope": rope}


def _redraw(module: nn.Module) -> nn.Module:
    """Draw all parameters anew, so that each has an effect on the outputs, from few values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            levels = torch.randn(parameter.shape, generator=generator).round().clamp(-1, 1)
            if parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token", "bias_table")):
                levels *= 2.0 ** -round(np.log2(parameter[0].numel()) / 2)
            elif "norm" in name and name.endswith("weight"):
                levels = 1 + levels / 4
            else:
                levels /= 4
            parameter.copy_(levels)
    return module.eval()


def write(path: Path) -> None:
    """Export all models in all precisions, and pack what a board needs of them."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path, "w:xz", preset=9) as archive:
        for name, content in _export_all(Path(folder)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _export_all(folder: Path) -> Iterator[tuple[str, bytes]]:
    for model in MODELS:
        size = _SIZE[model]
        data = folder / f"{model}.npz"
        images = np.stack([coloured_noise(0, index, (size, size)) for index in range(_CALIBRATION_IMAGES)])
        np.savez(data, images=images, labels=np.zeros(len(images), np.int64))
        for precision in PRECISIONS:
            out = folder / model / precision
            recipe = recipes.compose(
                f"python:{__file__}:{model}", target="tensorrt", precision=precision, image_size=f"{size}x{size}",
                calibration=str(data), task="raw", mean=(0.5,) * 3, std=(0.5,) * 3,
            )  # fmt: skip
            recipe = recipes.with_target_options(recipe, {"rehearsal": False})
            artifact = export(recipe, out, Silent()).artifact
            if precision == PRECISIONS[0]:
                yield f"{model}/{EXAMPLE}", _pack_example(artifact, images[0])
            yield f"{model}/{precision}/{FACTS}", describe(artifact.manifest).model_dump_json().encode()
            yield from ((f"{model}/{precision}/{name}", (out / name).read_bytes()) for name in (SITES, GRAPH))


def _pack_example(artifact: Artifact, pixels: Array) -> bytes:
    """Return an image, and what FP32 computes for it: the target-ready graph in ONNX Runtime, in its own order."""
    image = to_image(pixels)
    with OnnxSession(artifact.path / GRAPH, lean=True) as session:
        outputs = session.run({artifact.manifest.inputs[0].name: image})
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, pixels=pixels, **outputs)
    return file.getvalue()


def main() -> None:
    """Write the archive, and print its size."""
    write(ASSET)
    print(f"{ASSET.name}: {ASSET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
