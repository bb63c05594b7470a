from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lt_search.config.options import SpecOptions
from lt_search.config.resolver import resolve_spec
from lt_search.config.space import load_space, shipped_spaces
from lt_search.config.spec import RunSpec
from lt_search.config.values import flatten
from lt_search.data.extra import add_extra_data
from lt_search.data.registry import load_dataset
from lt_search.data.table import Dataset
from lt_search.errors import UserError
from lt_search.pruning.rungs import Rung
from tests.helpers.extra_data import extra_table
from tests.helpers.published import make_odir


@pytest.fixture
def options(tiny_space: Path, tiny_csv: Path) -> SpecOptions:
    return SpecOptions(str(tiny_space), str(tiny_csv))


def _resolve(options: SpecOptions, **changes: Any) -> RunSpec:
    changed = replace(options, **changes)
    assert changed.dataset is not None
    return resolve_spec(changed, load_dataset(changed.dataset), gpu=False)


def _places(options: SpecOptions, **changes: Any) -> list[str]:
    with pytest.raises(UserError) as raised:
        _resolve(options, **changes)
    return [f"{problem.place}: {problem.what}" for problem in raised.value.problems]


def test_set_fixes_a_searched_parameter(options: SpecOptions) -> None:
    spec = _resolve(options, set=("stage1.lr=0.25", "stage1.epochs=6"))
    assert "stage1.lr" not in spec.search
    assert spec.config["stage1"]["lr"] == 0.25
    assert spec.stage_lengths == (6, 2)


def test_search_adds_a_parameter_and_changes_a_range(options: SpecOptions) -> None:
    spec = _resolve(options, search=("stage2.bias=uniform(-0.5, 0.5)", "stage1.seconds=uniform(0, 1)"))
    assert spec.search["stage2.bias"].range == "uniform(-0.5, 0.5)"
    assert spec.search["stage1.seconds"].range == "uniform(0, 1)"


def test_a_budget_takes_epochs_from_the_size_of_the_data(options: SpecOptions, tiny_space: Path) -> None:
    tiny_space.write_text(tiny_space.read_text().replace("trials: 6", "trials: 6\n    stage1_images: 2000"))
    dataset = load_dataset(str(options.dataset))
    spec = _resolve(options)
    assert spec.stage_lengths[0] == round(2000 / len(dataset.train))
    assert any("stage-1 epochs" in note for note in spec.notes)


def test_all_mistakes_come_in_one_message(options: SpecOptions) -> None:
    found = _places(
        options,
        metric="mPA",
        set=("stage1.lrr=1", "stage2.bias", "stage1.optimiser=adam"),
        search=("stage1.seconds=uniform(2, 1)", "nothing=uniform(0, 1)"),
    )
    text = "\n".join(found)
    assert len(found) == 6
    for expected in ("'mPA'", "'stage1.lrr'", "'stage2.bias' is not NAME=VALUE", "stage1.optimiser=adam", "reversed"):
        assert expected in text
    assert "no parameter 'nothing'" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": ("stage1.lr=uniform(-1, 1)",)}, "outside the field's bounds at -1"),
        ({"search": ("stage1.lr=loguniform(0, 1)",)}, "log scale"),
        ({"set": ("stage1.lr=1", "stage1.lr=2")}, "stage1.lr is given twice"),
        ({"search": ("stage1.epochs=int(1, 9)",)}, "one constant per run"),
        ({"set": ("stage1.lr=50",)}, "must be at most 10 (given: 50)"),
        ({"search": ("stage1.epochs=uniform(1, 2)", "stage2.rounds=int(1, 3)")}, "one constant per run"),
        ({"search": ("stage1.late_loss_from=uniform(0, 1)",)}, "at 0.618: must be an integer"),
        ({"set": ("stage1.late_loss_from=2",)}, "step 1 comes before every loss is active"),
        ({"search": ("stage1.late_loss_from=int(0, 3)",)}, "step 3 comes before every loss is active"),
        ({"budget": "full"}, "no budget 'full'"),
        ({"metric": "BACC"}, "'BACC' does not apply to multi-label data"),
    ],
)
def test_a_mistake_is_named(options: SpecOptions, change: dict[str, Any], message: str) -> None:
    assert message in "\n".join(_places(options, **change))


def test_rungs_beyond_a_stage_that_the_user_shortened_are_left_out_with_a_note(options: SpecOptions) -> None:
    spec = _resolve(options, set=("stage1.epochs=2", "stage2.rounds=1"))
    assert spec.rung_list == (Rung(1, 1),)
    assert "no rung at stage1 step 3: it has only 2 steps" in spec.notes
    assert "no rung at stage2 step 1: it has only 1 steps" in spec.notes


def test_a_rung_of_the_space_beyond_its_stage_is_refused(options: SpecOptions, tiny_space: Path) -> None:
    tiny_space.write_text(tiny_space.read_text().replace("stage1: [1, 3]", "stage1: [1, 9]"))
    assert "a rung at step 9 is outside 1 to 4" in "\n".join(_places(options))


def test_other_mistakes_are_named_beside_a_wrong_value(options: SpecOptions) -> None:
    found = _places(options, set=("stage1.lr=50",), search=("stage2.bias=uniform(-9, 9)",), metric="x")
    assert len(found) == 3, found
    assert "stage1.lr=50" in "".join(found)
    assert "outside the field's bounds at -9" in "".join(found)


def test_a_range_narrowed_on_the_command_line_moves_the_first_value_into_it(options: SpecOptions) -> None:
    spec = _resolve(options, search=("stage1.lr=uniform(1, 2)", "stage2.bias=uniform(-1, -0.5)"))
    assert spec.first_values()["stage1.lr"] == 1
    assert spec.first_values()["stage2.bias"] == -0.5
    assert any("stage1.lr starts at 1" in note and "leaves out 0.5" in note for note in spec.notes)


def test_a_range_of_the_space_must_hold_its_own_first_value(options: SpecOptions, tiny_space: Path) -> None:
    tiny_space.write_text(tiny_space.read_text().replace("loguniform(1e-2, 5)", "uniform(1, 2)"))
    assert "leaves out 0.5, the value of the first trial" in "\n".join(_places(options))


def test_a_condition_that_can_never_hold_is_refused(options: SpecOptions, tiny_space: Path) -> None:
    text = tiny_space.read_text()
    tiny_space.write_text(text.replace("optimiser == momentum}", "optimiser == momentun}"))
    assert "can never hold: stage1.optimiser is searched in choice(sgd, momentum)" in "\n".join(_places(options))
    tiny_space.write_text(text.replace("optimiser == momentum}", "optimiser != momentum}"))
    _resolve(options)


def test_a_rung_must_come_after_a_loss_that_two_parameters_together_switch_on(tmp_path: Path) -> None:
    space = tmp_path / "two.yaml"
    space.write_text(
        """
trainer: ldrnet
metric: mAP
search: {stage2.update_encoder: bool(), stage2.e_step_start: "int(0, 6)"}
budgets:
  small:
    trials: 4
    rungs: {stage2: [2]}
    set: {stage1.backbone: conv4, stage1.weights: none, stage2.update_encoder: false, stage2.rounds: 8}
"""
    )
    with pytest.raises(UserError, match="the rung at step 2 comes before every loss is active"):
        _resolve(SpecOptions(str(space), "digits-ml:200"))


def test_the_objective_is_the_users_else_the_data_sets_own_else_the_spaces(tmp_path: Path) -> None:
    odir = load_dataset("odir5k", make_odir(tmp_path))
    by_eye = load_dataset("odir5k:eyes", tmp_path)

    def resolve(data: Dataset, metric: str | None = None) -> RunSpec:
        return resolve_spec(SpecOptions("ldrnet", metric=metric), data, gpu=False)

    def said(spec: RunSpec) -> list[str]:
        return [note for note in spec.notes if note.startswith("objective")]

    own = resolve(odir)
    assert own.metric == "odir_score"
    (note,) = said(own)
    assert "odir5k is scored by" in note and "--metric mAP takes the space's" in note
    assert (resolve(odir, "macro_f1").metric, said(resolve(odir, "macro_f1"))) == ("macro_f1", [])
    assert (resolve(by_eye).metric, said(resolve(by_eye))) == ("mAP", [])
    agreeing = resolve(replace(by_eye, objective="mAP"))
    assert (agreeing.metric, said(agreeing)) == ("mAP", [])


def test_extra_data_is_counted_apart_and_said(tiny_csv: Path, tmp_path: Path) -> None:
    table = extra_table(tmp_path / "more", *["a|hernia", "b"] * 40)
    plain = load_dataset(str(tiny_csv))
    extended = add_extra_data(plain, [str(table)])
    options = SpecOptions("cxr", budget="small")
    without, spec = (resolve_spec(options, data, gpu=False) for data in (plain, extended))
    assert spec.data.train_counts == without.data.train_counts and spec.data.images == without.data.images
    assert spec.data.training_images == without.data.training_images + 80 == len(plain.train) + 80
    assert spec.data.fingerprint == without.data.fingerprint and not without.data.extra
    text = "\n".join(spec.notes)
    for words in ("extra data more: 80 images of", "extra data more: unknown there: c", "are dropped: hernia"):
        assert words in text
    groups = [note for note in without.notes if note.startswith("Classes by training images")]
    assert groups and groups[0] in spec.notes


def test_epochs_are_reckoned_with_extra_data(tiny_csv: Path, tiny_space: Path, tmp_path: Path) -> None:
    space = tiny_space.read_text().replace("tests.tiny:TinyTrainer", "cxr").split("search:")[0]
    tiny_space.write_text(space + "budgets: {small: {trials: 2, image_size: 8, stage1_images: 4000, max_epochs: 99}}")
    table = extra_table(tmp_path / "more", *["a", "b"] * 40)
    plain = load_dataset(str(tiny_csv))
    for data, images in ((plain, len(plain.train)), (add_extra_data(plain, [str(table)]), len(plain.train) + 80)):
        spec = resolve_spec(SpecOptions(str(tiny_space), set=("stage1.weights=none",)), data, gpu=False)
        assert spec.stage_lengths[0] == round(4000 / images)


@pytest.mark.parametrize("space", ["ldrnet", "baselines-ml"])
def test_extra_data_is_for_trainers_that_take_unknown_labels(space: str, tiny_csv: Path, tmp_path: Path) -> None:
    data = add_extra_data(load_dataset(str(tiny_csv)), [str(extra_table(tmp_path / "more", "a", "b"))])
    row = next(iter(load_space(space).rows), None)
    with pytest.raises(UserError, match=r"--extra-data: \w+ does not take labels that are unknown.*\n.*such as cxr"):
        resolve_spec(SpecOptions(space, row=row, budget="small"), data, gpu=False)


def test_a_multi_label_space_on_multi_class_data_is_refused() -> None:
    with pytest.raises(UserError, match="takes multi-label data, but digits-lt is multi-class"):
        _resolve(SpecOptions("ldrnet", "digits-lt"))


SHIPPED = [(name, row) for name in shipped_spaces() for row in load_space(name).rows or [None]]


@pytest.mark.parametrize(("name", "row"), SHIPPED)
@pytest.mark.parametrize("gpu", [False, True])
def test_shipped_spaces_resolve_on_bundled_data(name: str, row: str | None, gpu: bool) -> None:
    data = "digits-ml" if load_space(name).metric == "mAP" else "digits-lt"
    spec = resolve_spec(SpecOptions(name, row=row), load_dataset(data), gpu=gpu)
    assert spec.budget == ("full" if gpu else "small")
    if name.endswith("-stage2"):
        assert not any(parameter.startswith("stage1") for parameter in spec.search)
    if row is not None:
        own = load_space(name).rows[row]
        assert set(own.search) <= set(spec.search)
        assert own.set.items() <= flatten(spec.config).items()


def test_rows_of_a_comparison_must_be_named_to_be_searched_alone() -> None:
    with pytest.raises(UserError, match="compares rows, and none is named"):
        _resolve(SpecOptions("baselines", "digits-lt"))
    with pytest.raises(UserError, match="did you mean crt"):
        _resolve(SpecOptions("baselines", "digits-lt", row="ctr"))
    with pytest.raises(UserError, match="the space has no rows"):
        _resolve(SpecOptions("lmd", "digits-lt", row="crt"))


def test_a_row_with_rungs_of_its_own_is_not_compared_where_the_budget_says() -> None:
    def rungs(row: str) -> dict[str, list[int]]:
        options = SpecOptions("baselines", row=row)
        return resolve_spec(options, load_dataset("digits-lt"), gpu=True).rungs

    assert rungs("ce")["stage1"]
    assert rungs("ldam-drw") == {"stage1": [], "stage2": []}


def test_a_rung_of_a_row_before_its_losses_are_active_is_refused(tmp_path: Path) -> None:
    text = shipped_spaces()["baselines"].replace("rungs: {eta: 2}  ", "rungs: {eta: 2, stage1: [0.9, 1.0]}  ")
    (tmp_path / "early.yaml").write_text(text)
    found = _places(SpecOptions(str(tmp_path / "early.yaml"), "digits-lt", row="ldam-drw"))
    assert len(found) == 1, found
    assert "rows.ldam-drw.rungs.stage1: the rung at step" in found[0]


@pytest.mark.parametrize("text", ["stage2.alpha=5", "stage2.q=0", "stage2.q=1.5"])
def test_alpha_and_q_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=text):
        resolve_spec(SpecOptions("ldrnet", set=(text,)), load_dataset("digits-ml"), gpu=False)


def test_ranges_end_where_larger_values_are_the_same_on_the_data() -> None:
    data = load_dataset("digits-lt")
    wide = SpecOptions("metric", search=("stage1.classes_per_batch=int(4, 20)",))
    spec = resolve_spec(wide, data, gpu=False)
    assert spec.parameters["stage1.classes_per_batch"].distribution.high == len(data.classes)
    assert any("classes_per_batch: at most 10" in note for note in spec.notes)
    beyond = SpecOptions("metric", search=("stage1.classes_per_batch=int(12, 20)",))
    cut = resolve_spec(beyond, data, gpu=False)
    assert "stage1.classes_per_batch" not in cut.search
    assert cut.config["stage1"]["classes_per_batch"] <= 10
    one, other = (
        resolve_spec(SpecOptions("metric", set=(f"stage1.classes_per_batch={many}",)), data, gpu=False)
        for many in (10, 20)
    )
    assert one.config == other.config
