"""The images to which FP32 and the artifact give different answers, and the accuracy of each class."""

from __future__ import annotations

from vitdeploy.evidence import ClassScore, Eval, Flip
from vitdeploy.render import numbers
from vitdeploy.render.html import raster
from vitdeploy.render.html.markup import Markup, element
from vitdeploy.render.html.parts import Drawing, Part, Table
from vitdeploy.render.html.subject import Subject

_MOST_CLASSES = 200
_KINDS = {"lost": "only FP32 is right", "gained": "only the artifact is right", "": ""}


def parts(subject: Subject) -> tuple[Part, ...]:
    """Return the pictures of flips, and the table of classes; each only if there is one."""
    evaluation = subject.evaluation
    if evaluation is None:
        return ()
    parts: list[Part] = [_draw(subject, evaluation)] if evaluation.flipped else []
    if len(evaluation.classes) > 1:
        parts.append(_classes(evaluation.classes))
    return tuple(parts)


def _draw(subject: Subject, evaluation: Eval) -> Drawing:
    shown = [_one(subject, number, flip) for number, flip in enumerate(evaluation.flipped)]
    return Drawing(element("div", *shown, class_="flips"), _caption(len(shown), evaluation.flips))


def _caption(shown: int, flips: int) -> str:
    if flips == 1:
        return "The image with different answers, as the model sees it."
    count = f"{shown} of the {flips:,}" if shown < flips else f"The {shown}"
    return f"{count} images with different answers, as the model sees them; those first that only FP32 gets right."


def _one(subject: Subject, number: int, flip: Flip) -> Markup:
    picture = subject.thumbnails.get(str(number))
    image = Markup("") if picture is None else raster.image(picture, flip.name)
    lines = [element("b", flip.name)]
    if flip.label:
        lines.append(element("span", f"label {flip.label}"))
    if flip.reference or flip.deployed:
        lines.append(element("span", "FP32 ", element("i", flip.reference), _score(flip.reference_score)))
        lines.append(element("span", "artifact ", element("i", flip.deployed), _score(flip.deployed_score)))
    else:
        lines.append(element("span", f"agreement {100 * flip.agreement:.0f} %"))
    if flip.kind:
        lines.append(element("span", _KINDS[flip.kind], class_=f"kind {flip.kind}"))
    return element("div", image, element("p", *lines))


def _score(score: float | None) -> str:
    return "" if score is None else f" {100 * score:.0f} %"


def _classes(classes: tuple[ClassScore, ...]) -> Table:
    worst = sorted(classes, key=lambda score: -score.drop)[:_MOST_CLASSES]
    rows = tuple(
        (score.name, f"{score.n:,}", f"{score.reference:.1f}", f"{score.deployed:.1f}", _drop(score)) for score in worst
    )
    title = f"Accuracy of {len(rows)} of {len(classes)} classes, largest drop first"
    head = ("class", "samples", "FP32 (%)", "artifact (%)", "drop, 95 % interval")
    return Table(head, rows, numeric=frozenset(range(1, 5)), title=title, folded=True)


def _drop(score: ClassScore) -> str:
    low, high = (numbers.without_minus_zero(end) for end in score.ci95)
    return f"{numbers.without_minus_zero(score.drop)} [{low}, {high}]"
