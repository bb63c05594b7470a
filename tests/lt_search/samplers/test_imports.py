from __future__ import annotations

import subprocess
import sys

LOADED = "import sys, lt_search.samplers; print(*sorted(sys.modules))"


def test_the_package_needs_nothing_else_of_lt_search() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], check=True, capture_output=True, text=True)
    loaded = done.stdout.split()
    own = [name for name in loaded if name.split(".")[0] in {"lt_search", "trainers", "search_spaces"}]
    assert "lt_search.samplers.staged" in own
    assert [name for name in own if not name.startswith("lt_search.samplers")] == ["lt_search"]
    assert not {"torch", "ray"} & set(loaded)
