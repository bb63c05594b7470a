"""Commands in messages."""

from __future__ import annotations

import shlex
from pathlib import Path

from lt_search.config.hints import resume_command


def test_a_command_can_be_pasted_also_where_a_folder_has_blanks(tmp_path: Path) -> None:
    folder = tmp_path / "my runs" / "a"
    words = shlex.split(resume_command(folder, "--trials", 6))
    assert words == ["lt-search", "search", "--resume", "a", "--storage", str(tmp_path / "my runs"), "--trials", "6"]
    assert resume_command(Path("runs").absolute() / "b") == "lt-search search --resume b"
