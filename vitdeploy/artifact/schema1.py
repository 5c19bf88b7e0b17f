"""Upgrade manifests of schema 1, in which the record of quantization was a map of texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitdeploy.artifact.quantization import (
    CalibrationData,
    HalfPrecision,
    Int8AttentionCount,
    Migration,
    Quantization,
    SearchStep,
)

_SAME = ("method", "activations", "weights", "rounding")
_CALIBRATION = {"calibration", "calibration_digest", "calibration_images"}
_HALF = {"edges", "ranges", "calibration_digest", "largest", "limit", "float32 besides"}
_FLOAT32 = ("float32: ", "float32 weights: ")
_AROUND, _DOUBT = "around: ", "doubt: "


def upgrade(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a manifest of schema 1 to schema 2.

    Raises:
        ValueError: the record has a key or a text that schema 1 does not have; the message names it.
    """
    texts = raw.get("quantized", {})
    if not isinstance(texts, Mapping) or not all(isinstance(value, str) for value in texts.values()):
        raise ValueError("quantized: it is not a map of texts")
    record = _parse_quantization(texts) if texts else None
    return {**raw, "schema_version": 2, "quantized": None if record is None else record.model_dump(mode="json")}


def _parse_quantization(texts: Mapping[str, str]) -> Quantization:
    method = texts.get("method", "")
    doubts = tuple(value for key, value in texts.items() if key.startswith(_DOUBT))
    around = {key.removeprefix(_AROUND): value for key, value in texts.items() if key.startswith(_AROUND)}
    rest = {key: value for key, value in texts.items() if not key.startswith((_AROUND, _DOUBT))}
    if "float16" in method or "bfloat16" in method:
        _refuse_unknown(rest, {"method"} | _HALF)
        return Quantization(method=method, half=_parse_half(rest, doubts))
    facts: dict[str, Any] = {key: rest.pop(key) for key in _SAME if key in rest}
    data = {key: rest.pop(key) for key in _CALIBRATION & set(rest)}
    if "calibration" in data:
        facts["calibration"] = CalibrationData(
            data=data["calibration"],
            digest=data.get("calibration_digest", ""),
            images=int(data.get("calibration_images", "0")),
            doubts=doubts,
        )
    for key, value in rest.items():
        facts |= _parse_fact(key, value)
    if around:
        facts["half"] = _parse_half(around, ())
    return Quantization.model_validate(facts)


def _parse_fact(key: str, value: str) -> dict[str, Any]:
    """Return the fields for one entry of the map."""
    if key in ("quantized", "weight_bits"):
        return {key: int(value)}
    if key in ("output_sqnr_db", "output_sqnr_db_without_attention"):
        return {key: _parse_decibels(value)}
    if key == "ranges":
        return {key: value}
    if key == "bias_correction":
        return {key: _match("on|off", key, value)[0] == "on"}
    if key == "migration":
        return _parse_migration(value)
    if key == "attention":
        match = _match(r"int8: .* of (\d+) of (\d+) sites", key, value)
        return {key: Int8AttentionCount(sites=int(match[1]), of=int(match[2]))}
    if key == "tried":
        return {key: tuple(_parse_search_step(text) for text in value.split("; "))}
    raise ValueError(f"quantized: unknown key {key!r}")


def _parse_migration(value: str) -> dict[str, Any]:
    if value == "off":
        return {}
    if value.startswith("none: "):
        return {"migration_note": value}
    match = _match(r"alpha ([\d.e+-]+), inputs of (\d+) places", "migration", value)
    return {"migration": Migration(alpha=float(match[1]), inputs=int(match[2]))}


def _parse_search_step(text: str) -> SearchStep:
    match = _match(
        r"(?:no migration|migration ([\d.]+)), (minmax|mse) ranges(, bias correction)?: (\S+) dB", "tried", text
    )
    return SearchStep.model_validate(
        {
            "alpha": None if match[1] is None else float(match[1]),
            "ranges": match[2],
            "bias_correction": match[3] is not None,
            "output_sqnr_db": _parse_decibels(match[4]),
        }
    )


def _parse_half(texts: Mapping[str, str], doubts: tuple[str, ...]) -> HalfPrecision:
    _refuse_unknown(texts, {"method"} | _HALF)
    method, facts = texts.get("method", ""), dict[str, Any]()
    if "largest" in texts:
        match = _match(r"(\S+) \((.*)\)", "largest", texts["largest"])
        facts |= {"largest": float(match[1]), "largest_tensor": match[2]}
    if "limit" in texts:
        facts["limit"] = float(texts["limit"].partition(":")[0])
    images = re.fullmatch(r"(\d+) (?:calibration images \((.*)\)|synthetic images only: .*)", texts.get("ranges", ""))
    if images is not None:
        facts["checked_on"] = CalibrationData(
            data=images[2] or "synthetic",
            digest=texts.get("calibration_digest", ""),
            images=int(images[1]),
            synthetic=images[2] is None,
            doubts=doubts,
        )
    nodes = [entry.split(" ", 1) for entry in texts.get("float32 besides", "").split(", ") if entry]
    return HalfPrecision(
        dtype="bfloat16" if "bfloat16" in method else "float16",
        scope="weights" if method.startswith("weights") else "all",
        float32={key.partition(": ")[2]: value for key, value in texts.items() if key.startswith(_FLOAT32)},
        float32_nodes={operator: int(count) for count, operator in nodes},
        **facts,
    )


def _refuse_unknown(texts: Mapping[str, str], known: set[str]) -> None:
    for key in texts:
        if key not in known and not key.startswith(_FLOAT32):
            raise ValueError(f"quantized: unknown key {key!r}")


def _match(pattern: str, key: str, value: str) -> re.Match[str]:
    match = re.fullmatch(pattern, value)
    if match is None:
        raise ValueError(f"quantized: {key} is {value!r}")
    return match


def _parse_decibels(text: str) -> float | None:
    value = float(text)
    return value if abs(value) != float("inf") else None
