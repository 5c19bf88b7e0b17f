"""The whole page. Every section is always there; one without evidence says what to run."""

from __future__ import annotations

from vitdeploy.render.html import (
    accuracy,
    attention,
    fusion,
    latency,
    provenance,
    sensitivity,
    tokens,
    tradeoff,
    verdict,
)
from vitdeploy.render.html.attention import AttentionMaps
from vitdeploy.render.html.parts import Page
from vitdeploy.render.html.subject import Subject
from vitdeploy.render.html.tokens import TokenGroups


def compose(subject: Subject, maps: AttentionMaps | None, groups: TokenGroups | None = None) -> Page:
    """Make the report of a subject. A model that merges and drops no tokens has no section on them."""
    fewer = (tokens.section(groups, subject.find_gap("tokens")),) if subject.manifest.tokens is not None else ()
    return Page(
        head=verdict.head(subject),
        sections=(
            latency.section(subject),
            accuracy.section(subject),
            tradeoff.section(subject),
            fusion.section(subject),
            *fewer,
            sensitivity.section(subject),
            attention.section(maps, subject.find_gap("attention")),
            provenance.environment(subject),
            provenance.recipe(subject),
        ),
        version=subject.manifest.versions.get("vitdeploy", ""),
        digest=subject.digest,
    )
