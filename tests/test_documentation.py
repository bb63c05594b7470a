"""The commands of README and docs: each is accepted by the command line, and each file that is named exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lt_search.cli import build_parser

TOP = Path(__file__).parent.parent
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """Every command of ours in an indented block or between backticks, with its page."""
    found = []
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            for text in [line.strip()] if line.startswith("    ") else re.findall(r"`([^`]+)`", line):
                if re.match(r"(lt-search|python run_search\.py) ", text):
                    found.append((page.name, text))
    return found


def arguments(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    return words[1:] if words[0] == "lt-search" else ["search", *words[2:]]


def test_there_are_commands() -> None:
    assert len(commands()) > 30


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_of_the_documentation_is_accepted(page: str, command: str) -> None:
    build_parser().parse_args(arguments(command))  # exits where it is wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target
