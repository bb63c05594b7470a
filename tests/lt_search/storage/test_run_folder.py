from __future__ import annotations

from pathlib import Path

import pytest

from lt_search.config.spec import RunSpec
from lt_search.errors import UserError
from lt_search.storage.files import FolderStore
from lt_search.storage.run_folder import COMPARISON, new_run, open_run, read_provenance, run_names, shared_storage


def test_default_names_carry_a_number(tiny_spec: RunSpec, tmp_path: Path) -> None:
    storage = FolderStore(tmp_path / "runs")
    names = [new_run(storage, None, tiny_spec, {}).root.name for _ in range(3)]
    assert names == ["tiny-0001", "tiny-0002", "tiny-0003"]
    assert run_names(storage) == names


def test_a_run_is_read_back_with_its_provenance(tiny_spec: RunSpec, tmp_path: Path) -> None:
    storage = FolderStore(tmp_path / "runs")
    new_run(storage, "mine", tiny_spec, {"git": "abc"})
    store, spec = open_run(storage, "mine")
    assert spec == tiny_spec
    assert read_provenance(store)["git"] == "abc"
    assert open_run(FolderStore(tmp_path), str(store.root))[1] == tiny_spec


def test_a_taken_name_with_the_same_spec_asks_for_resume(tiny_spec: RunSpec, tmp_path: Path) -> None:
    storage = FolderStore(tmp_path / "runs")
    new_run(storage, "mine", tiny_spec, {})
    with pytest.raises(UserError, match="--resume mine"):
        new_run(storage, "mine", tiny_spec, {})


def test_a_taken_name_with_another_spec_is_refused_and_the_difference_named(tiny_spec: RunSpec, tmp_path: Path) -> None:
    storage = FolderStore(tmp_path / "runs")
    new_run(storage, "mine", tiny_spec, {})
    other = tiny_spec.model_copy(update={"seed": 7, "eta": 5})
    with pytest.raises(UserError, match="differs in eta, seed"):
        new_run(storage, "mine", other, {})


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "sp ace"])
def test_a_name_that_cannot_be_a_folder_is_refused(tiny_spec: RunSpec, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a folder"):
        new_run(FolderStore(tmp_path), name, tiny_spec, {})


def test_resume_of_something_that_is_no_run_is_refused(tiny_spec: RunSpec, tmp_path: Path) -> None:
    storage = FolderStore(tmp_path / "runs")
    new_run(storage, "mine-1", tiny_spec, {})
    (tmp_path / "runs/empty").mkdir()
    for name in ("empty", "nothing"):
        with pytest.raises(UserError, match="is no run"):
            open_run(storage, name)
    with pytest.raises(UserError, match="did you mean mine-1"):
        open_run(storage, "mine1")


@pytest.mark.parametrize("text", ["trainer: [", "just words", "trainer: x"])
def test_a_damaged_spec_is_named(tiny_spec: RunSpec, tmp_path: Path, text: str) -> None:
    storage = FolderStore(tmp_path / "runs")
    store = new_run(storage, "mine", tiny_spec, {})
    store.write("run.yaml", text)
    with pytest.raises(UserError, match=r"run\.yaml"):
        open_run(storage, "mine")


def test_runs_and_the_rows_of_comparisons_share_the_stage_1s_of_their_storage(
    tiny_spec: RunSpec, tmp_path: Path
) -> None:
    storage = FolderStore(tmp_path / "runs")
    run = new_run(storage, "run", tiny_spec, {})
    storage.write(f"compared/{COMPARISON}", "rows: {}")
    row = new_run(FolderStore(storage.path("compared")), "row", tiny_spec, {})
    assert shared_storage(run).root == shared_storage(row).root == storage.root
