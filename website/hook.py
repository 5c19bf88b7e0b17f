"""The hook of `mkdocs build`: pages of the whole repository under their own paths, and references made from the code.

A page has the same path here as in the repository, so a link that works on GitHub works on the site, and
`mkdocs build --strict` finds one that does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website import api, commands, recipes

ROOT = Path(__file__).parents[1]
PAGES = ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "examples/**/*.md")
STYLE = "style.css"
GENERATED = {
    "docs/command-reference.md": commands.write_page,
    "docs/recipe-reference.md": recipes.write_page,
    "docs/python-reference.md": api.write_page,
}
_PICTURES = (".png", ".svg", ".jpg")
_CONTENTS = "docs/README.md"
"""The index of the documentation. The README of the repository is the front page."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give headings the anchors that GitHub gives them."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = make_anchor
    return config


def make_anchor(title: str, separator: str) -> str:
    """Return the anchor of a heading: lower case, without punctuation, spaces as `separator`."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", separator)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Replace the files of `docs/` by those of the whole repository, and add the generated pages."""
    for file in list(files.documentation_pages()) + list(files.media_files()):
        if file.src_dir is not None and Path(file.src_dir) == ROOT / "docs":
            files.remove(file)
    pages = sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})
    for path in pages:
        _add(files, config, path)
    for path in sorted({path for page in pages for path in find_linked_files(page)}):
        _add(files, config, path)
    files.append(File.generated(config, STYLE, abs_src_path=str(Path(__file__).with_name(STYLE))))
    for place, write in GENERATED.items():
        _put(files, File.generated(config, place, content=write()))
    return files


def find_linked_files(page: Path) -> Iterator[Path]:
    """Yield the files that a page links to or shows and that are no pages: pictures, sources, configurations."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s#:]+)\)", text) + re.findall(r'<img src="([^":]+)"', text):
        path = (page.parent / link).resolve()
        if path.is_file() and path.suffix != ".md":
            yield path


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Write pictures as Markdown, so that mkdocs checks and moves their links too."""
    return re.sub(r'<img src="([^"]+)"(?: width="\d+")? alt="([^"]*)">', r"![\2](\1)", markdown)


def _add(files: Files, config: MkDocsConfig, path: Path) -> None:
    _put(files, File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))


def _put(files: Files, file: File) -> None:
    """Choose the address of a file. A browser shows the source of a program only if it is called a text."""
    if file.is_documentation_page():
        file.dest_uri = "contents.html" if file.src_uri == _CONTENTS else file.dest_uri.removeprefix("docs/")
    elif not file.src_uri.endswith(_PICTURES):
        file.dest_uri += ".txt"
    files.append(file)
