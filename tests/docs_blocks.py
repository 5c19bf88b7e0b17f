"""The fenced blocks of a page of the documentation, and what a reader does with them, in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs_substitutions import NOT_RUN

ROOT = Path(__file__).parents[1]
SHELL = ("sh", "bash", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the paragraph before it."""

    language: str
    text: str
    before: str

    @property
    def file(self) -> str | None:
        """The file that it is, if the paragraph before it ends with a name: `NAME`:"""
        name = re.search(r"`([\w./-]+)`:$", self.before)
        return name[1] if name and self.language not in SHELL else None

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a shell block, each with the output that is shown below it."""
        if self.language not in SHELL:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language != "console":
            return [(" ".join(line.split()), "") for line in lines if line.strip()]
        found: list[tuple[str, str]] = []
        for line in lines:
            if line.startswith("$ "):
                found.append((" ".join(line[2:].split()), ""))
            elif found:
                found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
        return found


def read_blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks, end = [], 0
    for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        blocks.append(Block(fence[1], fence[2], text[end : fence.start()].rstrip().rpartition("\n\n")[2]))
        end = fence.end()
    return blocks


def is_run(page: str, block: Block) -> bool:
    return not any(entry.page == page and entry.text in block.text for entry in NOT_RUN)


def steps(page: str) -> Iterator[tuple[str, str, str]]:
    """Yield what to do with each block, in order: ("write", file, text) or ("run", command, shown output).

    A block of output belongs to the last command above it.
    """
    pending: list[tuple[str, str]] = []
    for block in read_blocks(page):
        if block.language == "text" and pending:
            pending[-1] = (pending[-1][0], pending[-1][1] + block.text)
            continue
        yield from (("run", *command) for command in pending)
        pending = block.commands if is_run(page, block) else []
        if block.file:
            yield "write", block.file, block.text
    yield from (("run", *command) for command in pending)
