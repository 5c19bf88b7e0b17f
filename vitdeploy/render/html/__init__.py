"""The report as one self-contained HTML file: no script, no font, no request."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.errors import UsageError
from vitdeploy.render.html.parts import Page

_TEMPLATES = Path(__file__).parent / "templates"


def render(page: Page) -> str:
    """Render the page as HTML. Everything that is not `Markup` is escaped.

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
    return environment.get_template("page.html").render(page=page)
