import subprocess
import sys
from pathlib import Path

import pytest

from lt_search.data import BUNDLED, PUBLISHED, bundled_for, load_dataset
from lt_search.errors import UserError
from tests.helpers.pictures import make_table, multi_class_rows
from trainers.task import Task


def message_of(name: str, data_root: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(name, data_root)
    return str(caught.value)


@pytest.mark.parametrize("task", list(Task))
def test_every_task_has_a_bundled_data_set(task: Task) -> None:
    assert load_dataset(bundled_for(task)).task == task


def test_unknown_names_are_answered_with_all_and_the_closest() -> None:
    message = message_of("digit-lt")
    assert "--dataset: unknown data set 'digit-lt'" in message
    assert "did you mean digits-lt?" in message
    assert all(name in message_of("holiday-pictures") for name in (*BUNDLED, *PUBLISHED))


def test_a_folder_is_answered_with_its_table(tmp_path: Path) -> None:
    table = make_table(tmp_path, multi_class_rows({"a": 2, "b": 2}))
    assert f"is a folder\n    fix: give its table: {table}" in message_of(str(tmp_path))


def test_bundled_data_has_no_root(tmp_path: Path) -> None:
    assert "--data-root: 'digits-lt' is bundled" in message_of("digits-lt", tmp_path)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_data_needs_its_folder_and_a_variant_that_is_not_empty(name: str) -> None:
    message = message_of(f"{name}:")
    assert f"--data-root: is missing: {name} is not bundled" in message
    assert f"{name + ':'!r} ends with a colon" in message
    assert all(variant in message for variant in PUBLISHED[name].variants)


def test_a_misspelled_published_name_is_answered_with_the_right_one() -> None:
    assert "did you mean nih-cxr14?" in message_of("nih_cxr14")


def test_reading_tables_does_not_import_torch_or_ray() -> None:
    script = "import sys, lt_search.data; print({'torch', 'ray', 'optuna', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
