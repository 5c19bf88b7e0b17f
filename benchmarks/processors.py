"""Compare vitdeploy's preprocessing with that of transformers, timm and torchvision, pixel by pixel.

    python -m benchmarks.processors [NAME…]

Every image processor of transformers that can be built with its defaults, timm's data configs (each that differs once,
with the first model that has it) and the transforms of torchvision's weights (likewise). Nothing is downloaded.
Export does the same comparison for each model, and refuses what is not equal. Writes benchmarks/processors.md.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.tables import describe_machine, write_page
from vitdeploy.data.pixel_check import MAX_BEYOND_ONE, MAX_FLAT, MAX_MEAN, OwnProcessor, compare_pixels
from vitdeploy.errors import SourceError
from vitdeploy.evidence import PixelCheck
from vitdeploy.recipe import Preprocess
from vitdeploy.sources import timm as timm_source
from vitdeploy.sources import torchvision as torchvision_source
from vitdeploy.sources._hf_processor import read_processor

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("preprocessing", "result", "largest", "mean", "beyond 1", "one colour", "what vitdeploy does, or why not")
SIZE = (480, 640)  # for processors whose images have no size of their own
EQUAL, REFUSED, UNBUILT = "equal", "refused", "not built"

Entry = tuple[OwnProcessor, Preprocess]
Builder = Callable[[], Entry]


def main() -> None:
    """Compare everything, or what is named, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="rows to compare (default: all)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for name, build in [*list_transformers(), *list_timm(), *list_torchvision()]:
        if not arguments.names or name in arguments.names:
            rows.append(compare(name, build))
            print(" | ".join(rows[-1]), flush=True)
    if not arguments.names:
        write_page(TABLE, _heading(rows), COLUMNS, rows)


def compare(name: str, build: Builder) -> tuple[str, ...]:
    """Return the row of one preprocessing."""
    try:
        own, preprocess = build()
    except SourceError as error:
        return (name, REFUSED, "", "", "", "", error.message)
    except Exception as error:  # noqa: BLE001  classes that need arguments, or libraries that are not here
        return (name, UNBUILT, "", "", "", "", _shorten(error))
    check = compare_pixels(own, preprocess)
    figures = (check.max_difference, check.mean_difference, check.beyond_one_pct, check.flat_difference)
    largest, mean, beyond, flat = ("" if value is None else f"{value:.2g}" for value in figures)
    text = _describe(preprocess, check) if check.equal else check.why
    return (name, EQUAL if check.equal else REFUSED, largest, mean, f"{beyond} %" if beyond else "", flat, text)


def list_transformers() -> Iterator[tuple[str, Builder]]:
    """Yield all image processors of the installed transformers, as AutoImageProcessor takes them by default."""
    import transformers

    logging: Any = transformers.utils.logging  # it has no types
    logging.set_verbosity_error()
    abstract = {"AutoImageProcessor", "BaseImageProcessor"}
    for name in sorted(n for n in dir(transformers) if n.endswith("ImageProcessor") and n not in abstract):
        yield f"transformers {name}", lambda name=name: _read(getattr(transformers, name)())  # type: ignore[misc]


def _read(processor: Any) -> Entry:
    config = SimpleNamespace()
    try:
        return read_processor("model", processor, config, None)
    except SourceError:
        return read_processor("model", processor, config, SIZE)


def list_timm() -> Iterator[tuple[str, Builder]]:
    """Yield every data config that differs, with the first pretrained model that has it."""
    import timm
    from timm.data import config as timm_config

    resolve: Any = timm_config.resolve_data_config
    seen = set()
    for name in timm.list_pretrained():
        cfg = timm.get_pretrained_cfg(name)
        if cfg is None:
            continue
        values: Any = cfg
        config = resolve(pretrained_cfg=values.to_dict())
        key = tuple(config[k] for k in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"))
        if key not in seen:
            seen.add(key)
            yield f"timm {name}", lambda config=config: _build_timm(config)  # type: ignore[misc]


def _build_timm(config: dict[str, Any]) -> Entry:
    return timm_source.make_processor(config), timm_source.read_preprocess(config)


def list_torchvision() -> Iterator[tuple[str, Builder]]:
    """Yield the transforms of all weights for images, each that differs once."""
    import torchvision

    seen = set()
    for name in torchvision.models.list_models():
        for weights in torchvision.models.get_model_weights(name):
            transform = weights.transforms()
            values = {key: value for key, value in vars(transform).items() if not key.startswith("_")}
            key = f"{type(transform).__name__} {values}"
            if key not in seen:
                seen.add(key)
                yield (
                    f"torchvision {name} {weights.name}",
                    lambda name=name, weights=weights: _build_torchvision(name, weights),  # type: ignore[misc]
                )


def _build_torchvision(name: str, weights: Any) -> Entry:
    preprocess = torchvision_source.read_preprocess(name, weights, None)
    return torchvision_source.make_processor(weights, preprocess), preprocess


def _describe(preprocess: Preprocess, check: PixelCheck) -> str:
    """Return the keys that are not the default, without those that are numbers of the model."""
    height, width = preprocess.size
    fields = type(preprocess).model_fields
    hidden = {"size", "mean", "std", "fill", "crop_rounding"}
    values = preprocess.model_dump(mode="json", exclude=hidden)
    keys = [f"{key} {value}" for key, value in values.items() if value != fields[key].default]
    shrunk = [f"{check.shrunk} of {len(check.images)} images shrunk to fit"] if check.shrunk else []
    return ", ".join([f"{height}x{width}", *keys, *shrunk])


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _heading(rows: list[tuple[str, ...]]) -> list[str]:
    counts = []
    for library in ("transformers", "timm", "torchvision"):
        results = [row[1] for row in rows if row[0].startswith(f"{library} ")]
        counts.append(
            f"| {library} | {len(results)} | {results.count(EQUAL)} | {results.count(REFUSED)} | "
            f"{results.count(UNBUILT)} | 0 |"
        )
    return [
        "# Preprocessing beside the models' own",
        "",
        "The model's own image processor and vitdeploy's, on five photograph-like images that are not square, and two",
        "of one colour. Differences are in units of 1/255 before mean and std. Equal means: no more than",
        f"{MAX_MEAN}/255 in the mean and {100 * MAX_BEYOND_ONE:g} % of the values beyond 1/255 on any image, and no",
        f"more than {MAX_FLAT}/255 on one colour. `vitdeploy/data/pixel_check.py` says why. Export makes the same",
        "comparison, keeps it in the manifest, and refuses what is not equal, unless the user asks for another",
        "preprocessing. Made by `python -m benchmarks.processors`.",
        "",
        describe_machine("torch", "torchvision", "transformers", "timm", "pillow"),
        "",
        "| library | preprocessings | equal within rounding | refused by name | needs arguments | silently other |",
        "|---|---|---|---|---|---|",
        *counts,
    ]


if __name__ == "__main__":
    main()
