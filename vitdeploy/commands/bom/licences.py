"""Licences of libraries and models, in the form of CycloneDX."""

from __future__ import annotations

from importlib import metadata
from typing import Any

_SPDX = {
    name.lower(): name
    for name in (
        "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "0BSD", "Unlicense", "Zlib", "BSL-1.0", "MPL-2.0",
        "GPL-2.0-only", "GPL-3.0-only", "LGPL-3.0-only", "AGPL-3.0-only", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0",
        "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0", "HPND", "PSF-2.0",
    )
}  # fmt: skip
"""Identifiers of SPDX that models and libraries use, by their lower-case form, as model cards write them."""
_IN_WORDS = {
    "mit license": "MIT",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd 3-clause license": "BSD-3-Clause",
    "gpl-2.0": "GPL-2.0-only",
    "gpl-3.0": "GPL-3.0-only",
    "lgpl-3.0": "LGPL-3.0-only",
    "agpl-3.0": "AGPL-3.0-only",
}
"""Other names of the same licences."""
_LONGEST_NAME = 64  # beyond it the field has the text of a licence
_NO_NAMES = ("", "UNKNOWN")  # older setuptools wrote the latter for a library that names none
_CLASSIFIER = "License :: OSI Approved :: "


def name_licence(name: str) -> list[dict[str, Any]]:
    """Return the licences of a component: by their SPDX identifier where it is known, else by the name as it is."""
    if not name:
        return []
    identifier = _SPDX.get(name.lower()) or _IN_WORDS.get(name.lower())
    return [{"license": {"id": identifier} if identifier else {"name": name}}]


def find_library_licence(name: str, version: str) -> list[dict[str, Any]]:
    """Return the licences of an installed library; none if it is not installed in this version, or does not say.

    Another version may have another licence.
    """
    try:
        facts = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return []
    if facts["Version"] != version:
        return []
    if expression := _read(facts, "License-Expression"):
        return name_licence(expression) if expression.lower() in _SPDX else [{"expression": expression}]
    text = _read(facts, "License")
    if text.upper() not in _NO_NAMES and "\n" not in text and len(text) <= _LONGEST_NAME:
        return name_licence(text)
    classifiers = facts.get_all("Classifier") or []
    named = [item.removeprefix(_CLASSIFIER) for item in classifiers if item.startswith(_CLASSIFIER)]
    return [licence for name in named for licence in name_licence(name)]


def _read(facts: metadata.PackageMetadata, key: str) -> str:
    """Return a field of a library's metadata; empty if it is not there."""
    return facts[key].strip() if key in facts else ""
