"""Specs find their plug-in, and what is no spec says which forms there are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from vitdeploy import plugins, sources
from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec


@pytest.mark.parametrize("name", plugins.names(sources))
def test_every_file_defines_one_source(name: str) -> None:
    assert issubclass(plugins.find(sources, name, sources.Source), sources.Source)  # type: ignore[type-abstract]


@pytest.mark.parametrize("spec", ["deit_tiny", "tim:deit_tiny", "timm:", "model.txt", "onnxfile:x", ""])
def test_what_is_no_spec_lists_the_forms(spec: str) -> None:
    with pytest.raises(SourceError, match=r"is not a model.*hf:NAME_OR_DIR.*FILE\.pt2.*timm:NAME"):
        sources.load(ModelSpec(spec=spec))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("best.pth", "Name the model that they are of: vitdeploy export timm:NAME --weights best.pth"),
        ("runs/last.ckpt", "--weights runs/last.ckpt"),
        ("C:/model.bin", "--weights C:/model.bin"),
        ("model.engine", "It is compiled already. Export the model"),
        ("model.xml", "It is compiled already"),
        ("my_vit.py", "python:my_vit.py:FUNCTION"),
        ("google/vit-base-patch16-224", "Give hf:google/vit-base-patch16-224 if"),
        ("deit_tiny_patch16_224", "Give timm:deit_tiny_patch16_224"),
        ("vit_small_patch14_dinov2.lvd142m", "Give timm:vit_small_patch14_dinov2.lvd142m"),
        ("vit_b_16", "Give torchvision:vit_b_16"),
    ],
)
def test_what_people_type_is_told_what_it_means(typed: str, meant: str) -> None:
    with pytest.raises(SourceError, match=f"is not a model.*{re.escape(meant)}"):
        sources.load(ModelSpec(spec=typed))


@pytest.mark.parametrize(
    ("file", "content", "meant"),
    [
        ("manifest.json", "{}", "It is an artifact: measure it with vitdeploy bench "),
        ("config.json", '{"architectures": ["ViTForImageClassification"]}', "Give hf:"),
        ("config.json", '{"architecture": "deit_tiny_patch16_224"}', "Give timm:"),
        ("config.json", "[", "Give demo:digits"),
        ("notes.txt", "", "Give demo:digits"),
    ],
)
def test_a_folder_is_told_by_its_files(file: str, content: str, meant: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(SourceError, match=f"is not a model.*{re.escape(meant)}"):
        sources.load(ModelSpec(spec=str(tmp_path)))


def test_a_misspelt_scheme_names_the_nearest() -> None:
    with pytest.raises(SourceError, match="did you mean 'torchvision'"):
        sources.load(ModelSpec(spec="torchvison:vit_b_16"))


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"vitdeploy\[hf\]"):
        sources.load(ModelSpec(spec="hf:google/vit-base-patch16-224"))
