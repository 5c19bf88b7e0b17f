"""The last look at what is printed: no control character and no command of a CI system gets through.

Values are escaped where they become tables and lines (`escaping.of_escaped`). What was forgotten there is caught here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.segment import Segment

from vitdeploy.escaping import break_commands, escape, starts_command


def guarded_console(**options: Any) -> Console:
    """Return a console that prints texts as they are: no markup, no emoji codes, no highlighting."""
    console = Console(markup=False, emoji=False, highlight=False, **options)
    console.push_render_hook(_Guard())
    return console


class _Guard(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Wrap everything except rich's own movements of the cursor."""
        return [one if isinstance(one, Control) else _Guarded(one) for one in renderables]


@dataclass
class _Guarded:
    """A renderable whose text is escaped after it was laid out."""

    renderable: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Yield the segments of all lines."""
        line: list[Segment] = []
        for segment in console.render(self.renderable, options):
            if segment.control:
                line.append(segment)
                continue
            *ended, rest = segment.text.split("\n")
            for text in ended:
                yield from _guard_line([*line, Segment(text, segment.style)])
                yield Segment.line()
                line = []
            line.append(Segment(rest, segment.style))
        yield from _guard_line(line)


def _guard_line(line: Iterable[Segment]) -> Iterator[Segment]:
    """Yield a line without control characters. A backslash breaks what a CI system takes for a command."""
    segments = [s if s.control else Segment(break_commands(escape(s.text)), s.style) for s in line if s.text]
    if starts_command("".join(s.text for s in segments if not s.control)):
        yield Segment("\\")
    yield from segments
