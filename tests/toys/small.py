"""`small:DEPTH`: a toy source, a small ViT with random weights and as many blocks."""

from __future__ import annotations

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec, Preprocess
from vitdeploy.sources import LoadedModel, Source, _weights


class Small(Source):
    """For images of 32 x 32 grey pixels and ten classes."""

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """Build it."""
        from timm.models.vision_transformer import VisionTransformer

        if not argument.isdecimal():
            raise SourceError(f"{argument!r} is no number of blocks", fix="Give small:2.")
        with _weights.fixed_seed():
            module = VisionTransformer(
                img_size=32, patch_size=8, in_chans=1, num_classes=10, embed_dim=64, depth=int(argument), num_heads=2
            )
        preprocess = Preprocess.model_validate({"size": (32, 32), "mean": (0.5,), "std": (0.5,), "channels": 1})
        return _weights.make_loaded_model(module, weights="random", preprocess=preprocess, labels=None)

    def default_data(self, argument: str) -> str | None:
        """Return the digits, which fit it."""
        return "demo:digits"
