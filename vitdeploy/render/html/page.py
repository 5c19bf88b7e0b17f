"""The whole page from what is known: every section is there, and says what to run where its evidence is not."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.render.html import accuracy, attention, fusion, latency, provenance, sensitivity, tradeoff, verdict
from vitdeploy.render.html.attention import AttentionMaps
from vitdeploy.render.html.parts import Page
from vitdeploy.render.html.subject import Subject


def compose(subjects: Sequence[Subject], maps: AttentionMaps | None) -> Page:
    """The report on the first subject; the others are beside it in the trade-off of speed and accuracy."""
    subject = subjects[0]
    return Page(
        head=verdict.head(subject),
        sections=(
            latency.section(subject),
            accuracy.section(subject),
            tradeoff.section(subjects),
            fusion.section(subject),
            sensitivity.section(subject),
            attention.section(maps, subject.why("attention")),
            provenance.environment(subject),
            provenance.recipe(subject),
        ),
        version=subject.manifest.versions.get("vitdeploy", ""),
        digest=subject.digest,
    )
