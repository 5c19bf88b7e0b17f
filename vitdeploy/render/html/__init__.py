"""Pages as one self-contained HTML file: no font, no request, and no script that is not vitdeploy's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitdeploy.errors import UsageError
from vitdeploy.render.html.parts import Page

_TEMPLATES = Path(__file__).parent / "templates"


def render(page: Page) -> str:
    """Render the report as HTML. Everything that is not `Markup` is escaped.

    Raises:
        UsageError: Jinja is not installed.
    """
    return fill_template("page.html", page)


def fill_template(name: str, page: Any) -> str:
    """Fill one of the templates with a page.

    Raises:
        UsageError: Jinja is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise UsageError("jinja2 is not installed", fix="pip install 'vitdeploy[report]'.") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(page=page)
