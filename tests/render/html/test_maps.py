"""The maps by block: fusion, sensitivity, attention."""

import base64
import io
import re

import numpy as np
from PIL import Image

from tests.evidence import audit as plain_audit
from tests.render.html.subjects import audit, maps, sensitivity, subject
from vitdeploy.render.html import attention, fusion, raster
from vitdeploy.render.html import sensitivity as sensitivities
from vitdeploy.render.html.parts import Missing, Section

GAP = Missing("no images", "Give --data DATA.")


def drawing(section: Section) -> str:
    part = section.parts[0]
    assert part.kind == "drawing"
    return part.body


def cells(body: str, line: int) -> list[str]:
    """The classes of the cells in a line of the grid."""
    lines = re.findall(r'<div class="line">(.*?)</div>', body)
    return re.findall(r'<span class="cell (\w+)"', lines[line])


def test_every_block_shows_fusion_and_precision() -> None:
    found = fusion.section(subject(audit=audit({"blocks.1.attn": "runs as parts"}, **{"blocks.2.attn.qkv": "fp16"})))
    body = drawing(found)
    assert cells(body, 0) == ["fused", "unfused", "fused"]
    assert cells(body, 1) == ["int8", "int8", "fp16"]
    assert "blocks.1.attn: runs as parts" in body
    assert "2 of 3 attention sites" in found.lede
    reasons = found.parts[-1]
    assert reasons.kind == "table"
    assert reasons.rows == (("1", "blocks.1.attn", "runs as parts"),)


def test_sites_and_linears_that_the_audit_does_not_name_are_unknown() -> None:
    found = fusion.section(subject(audit=plain_audit(3, 3)))
    assert cells(drawing(found), 0) == ["unknown"] * 3
    assert cells(drawing(found), 1) == ["unknown"] * 3


def test_a_bundle_proves_nothing() -> None:
    found = fusion.section(subject(audit=plain_audit(0, 3, "graph")))
    assert "nothing is compiled yet" in found.doubts[0]
    assert cells(drawing(found), 0) == ["unknown"] * 3


def test_the_most_sensitive_comes_first() -> None:
    found = sensitivities.section(subject())
    assert found.lede.startswith("patch is the most sensitive")
    values = [float(v) for v in re.findall(r"opacity:([\d.]+)", drawing(found))]
    assert values[0] == max(values)
    assert values[-1] == 0


def test_no_finite_sensitivity_is_a_gap() -> None:
    layers = tuple(n.model_copy(update={"output_sqnr_db": float("inf")}) for n in sensitivity().layers)
    found = sensitivities.section(subject(sensitivity=sensitivity().model_copy(update={"layers": layers})))
    assert found.missing is not None
    assert "inspect --sensitivity" in found.missing.fix


def test_attention_names_the_head_that_changed_most() -> None:
    found = attention.section(maps(), GAP)
    assert "block 2, head 0: 3.00 %" in found.lede
    assert len(found.parts) == 2, "the last block is the one that moved most"


def test_without_maps_the_section_says_why() -> None:
    assert attention.section(None, GAP).missing == GAP


def test_rounding_does_not_look_like_damage() -> None:
    body = attention.section(maps(difference=1e-7), GAP).parts[1]
    assert body.kind == "drawing"
    images = re.findall(r'<img src="data:image/png;base64,([^"]+)"', body.body)
    difference = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[3]))))
    assert difference.shape == (4, 4, 4)
    assert difference[..., 3].max() <= 2, "nothing can be seen"


def pixels(body: str) -> list[list[list[int]]]:
    data = re.search(r"base64,([^\"]+)", body)
    assert data is not None
    found: list[list[list[int]]] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1])))).tolist()
    return found


def test_a_heat_map_is_one_pixel_a_cell_from_nothing_to_most() -> None:
    found = pixels(raster.heat(np.array([[0.0, 0.2]]), 0.2, "x"))
    assert found == [[list(raster.SEQUENTIAL[0]), list(raster.SEQUENTIAL[-1])]]


def test_a_difference_is_blue_nothing_or_red() -> None:
    found = pixels(raster.difference(np.array([[-0.2, 0.0, 0.1, 9.0]]), 0.2, "x"))
    assert found[0][0] == [*raster.LESS, 255]
    assert found[0][1][3] == 0
    assert found[0][2] == [*raster.MORE, 128]
    assert found[0][3] == [*raster.MORE, 255]
