"""An Einsum that multiplies matrices becomes a MatMul with the same numbers; any other stays."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import parsed, run, types
from vitdeploy.passes._einsum import raise_products

SIZES = {"b": 2, "h": 3, "i": 4, "j": 5, "d": 6}


def model(equation: str, b_sizes: dict[str, int] = SIZES) -> str:
    terms = equation.partition("->")[0].replace(" ", "").split(",")
    a, b = ([str(sizes[x]) for x in term] for term, sizes in zip(terms, (SIZES, b_sizes), strict=True))
    return (
        f'<ir_version: 10, opset_import: ["" : 20]> vit (float[{",".join(a)}] a, float[{",".join(b)}] b)'
        f' => (float y) {{ y = Einsum<equation = "{equation}">(a, b) }}'
    )


def drawn(term: str, seed: int) -> np.ndarray:
    shape = [SIZES[letter] for letter in term]
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "equation",
    [
        "bhid,bhjd->bhij",
        "bhij,bhjd->bhid",
        "bihd,bjhd->bhij",
        "bhij,bjhd->bihd",
        "bhjd,bhid->bhij",  # the operands change places
        "bhid,bhjd->bhji",
        "bhid, bhdj -> bijh",
        "id,jd->ij",
    ],
)
def test_a_product_of_matrices_becomes_one(equation: str) -> None:
    graph = parsed(model(equation))
    graph.infer_shapes()
    assert raise_products(graph) == 1
    assert "Einsum" not in types(graph) and types(graph).count("MatMul") == 1
    a, b = (drawn(term, seed) for seed, term in enumerate(equation.replace(" ", "").partition("->")[0].split(",")))
    assert np.abs(run(graph, a, b=b)["y"] - np.einsum(equation, a, b)).max() < 1e-5


@pytest.mark.parametrize(
    "equation",
    [
        "bhid,bhid->bhi",  # an axis of its own is missing
        "bhij,bhjd->bhd",  # a sum over an axis of one operand
        "bhid,bhjd->bij",  # a sum over two axes
        "hhid,hjd->hij",  # a diagonal
        "bhid,bhjd",  # nothing says what is summed
    ],
)
def test_another_equation_stays(equation: str) -> None:
    graph = parsed(model(equation))
    assert (raise_products(graph), types(graph)) == (0, ["Einsum"])


def test_a_size_that_broadcasts_stays() -> None:
    graph = parsed(model("bhid,bhjd->bhij", SIZES | {"h": 1}))
    assert raise_products(graph) == 0
