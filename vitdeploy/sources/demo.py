"""`demo:digits`: a small trained ViT inside the package, to try everything without network or data."""

from __future__ import annotations

from importlib import resources

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec, Preprocess
from vitdeploy.sources import LoadedModel, Source, WeightsOrigin, _digits_vit, _weights


class Demo(Source):
    """`demo:digits`, 0.45 M parameters, 1x32x32 in, ten classes out."""

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """Load the digits model; its pretrained weights are in the package."""
        if argument != "digits":
            raise SourceError(f"there is no demo {argument!r}", fix="Give demo:digits, the only demo.")
        if spec.num_classes is not None or spec.kwargs or (size is not None and size != _digits_vit.IMAGE_SIZE):
            raise SourceError(
                "demo:digits has ten classes, takes no kwargs, and only images of 32x32",
                fix="Leave out --image-size, --num-classes and model.kwargs.",
            )
        weights = _weights.find_weights(spec)
        with _weights.fixed_seed():
            module = _digits_vit.digits_vit()
        origin: WeightsOrigin
        checkpoint = None
        if weights == "random":
            origin = "random"
        elif weights == "pretrained":
            origin = "pretrained"
            with resources.as_file(resources.files("vitdeploy") / "assets" / "digits.safetensors") as path:
                _weights.load_file(module, path)
        else:
            origin = "file"
            checkpoint = _weights.load_file(module, weights, spec.weights_key).use
        return _weights.make_loaded_model(
            module,
            weights=origin,
            preprocess=Preprocess.model_validate(
                {
                    "size": _digits_vit.IMAGE_SIZE,
                    "mean": _digits_vit.MEAN,
                    "std": _digits_vit.STD,
                    "interpolation": _digits_vit.INTERPOLATION,
                    "channels": len(_digits_vit.MEAN),
                }
            ),
            labels=_digits_vit.LABELS,
            checkpoint=checkpoint,
        )

    def default_data(self, argument: str) -> str | None:
        """Return the digits. They have two parts: one to calibrate on, one to evaluate on."""
        return f"demo:{argument}"
