"""Specs find their plug-in, and what is no spec says which forms there are."""

from __future__ import annotations

import sys

import pytest

from vitdeploy import plugins, sources
from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec


@pytest.mark.parametrize("name", plugins.names(sources))
def test_every_file_defines_one_source(name: str) -> None:
    assert issubclass(plugins.find(sources, name, sources.Source), sources.Source)  # type: ignore[type-abstract]


@pytest.mark.parametrize("spec", ["deit_tiny", "tim:deit_tiny", "timm:", "model.txt", "onnxfile:x", "C:/model.bin", ""])
def test_what_is_no_spec_lists_the_forms(spec: str) -> None:
    with pytest.raises(SourceError, match=r"is not a model.*hf:NAME_OR_DIR.*FILE\.pt2.*timm:NAME"):
        sources.load(ModelSpec(spec=spec))


def test_a_misspelt_scheme_names_the_nearest() -> None:
    with pytest.raises(SourceError, match="did you mean 'torchvision'"):
        sources.load(ModelSpec(spec="torchvison:vit_b_16"))


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"vitdeploy\[hf\]"):
        sources.load(ModelSpec(spec="hf:google/vit-base-patch16-224"))
