"""Screenshots of a report for the documentation: `python -m tests.render.html.shots REPORT FOLDER [NAME]`.

docs/images has those of `make demo` (NAME is report) and of the small SegFormer of tests/tasks/fixtures (segmentation).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from tests.render.html.chromium import DESK, PHONE, Media, browser

# name -> width, medium, the section to begin with, height (so that each file stays below 200 kB)
_VIEWS: dict[str, tuple[int, Media, str, int]] = {
    "light": (DESK, "light", "", 1480),
    "dark": (DESK, "dark", "fusion", 1480),
    "phone": (PHONE, "light", "", 1700),
}


def take(report: Path, folder: Path, name: str = "report") -> None:
    """Write one PNG for each view, `NAME-VIEW.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as page:
        for view, (width, media, section, height) in _VIEWS.items():
            page.open(report, width=width, media=media)
            found = f"document.getElementById('{section}')"
            top = page.evaluate(f"{found}.getBoundingClientRect().top + scrollY - 16") if section else 0
            picture = Image.open(io.BytesIO(page.screenshot(top=top, height=height))).convert("RGB")
            picture.save(folder / f"{name}-{view}.png", optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
