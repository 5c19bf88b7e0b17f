"""The recipe: everything that decides an artifact, as data that is read from YAML and has a digest.

A recipe is parsed once, at the edge; nothing in it is executed. An unknown key is an error that names the nearest
known one. Options that belong to one target or one task stay raw here: the class found by its name validates them.
"""

from __future__ import annotations

from vitdeploy.frozen import Frozen, parse
from vitdeploy.recipe.composing import (
    compose,
    parse_binds,
    parse_examples,
    parse_statistics,
    target_options,
    with_target_options,
)
from vitdeploy.recipe.image_size import SizeRange, format_size
from vitdeploy.recipe.inputs import InputSpec
from vitdeploy.recipe.model import ALL_OUTPUTS, DECODER, ENCODER, ModelSpec
from vitdeploy.recipe.preprocess import Interpolation, Preprocess, Resize
from vitdeploy.recipe.prompts import fill_templates, read_prompts
from vitdeploy.recipe.reading import build, read, read_mapping
from vitdeploy.recipe.schema import (
    AUTO,
    NNCF,
    OWN,
    REFERENCE,
    VALUES,
    Batch,
    BenchSpec,
    DataSpec,
    GateSpec,
    InputForm,
    Int8Attention,
    Limit,
    PrecisionSpec,
    Quantizer,
    Recipe,
    TargetSpec,
    TaskSpec,
)
from vitdeploy.recipe.tokens import Schedule, TokensSpec, describe_schedule

__all__ = [
    "ALL_OUTPUTS",
    "AUTO",
    "DECODER",
    "ENCODER",
    "NNCF",
    "OWN",
    "REFERENCE",
    "VALUES",
    "Batch",
    "BenchSpec",
    "DataSpec",
    "Frozen",
    "GateSpec",
    "InputForm",
    "InputSpec",
    "Int8Attention",
    "Interpolation",
    "Limit",
    "ModelSpec",
    "PrecisionSpec",
    "Preprocess",
    "Quantizer",
    "Recipe",
    "Resize",
    "Schedule",
    "SizeRange",
    "TargetSpec",
    "TaskSpec",
    "TokensSpec",
    "build",
    "compose",
    "describe_schedule",
    "fill_templates",
    "format_size",
    "parse",
    "parse_binds",
    "parse_examples",
    "parse_statistics",
    "read",
    "read_mapping",
    "read_prompts",
    "target_options",
    "with_target_options",
]
