"""Search spaces as a person reads them: what there is, and every field that can be set or searched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lt_search.space import load_space, shipped_spaces
from lt_search.spec import trainer_type

if TYPE_CHECKING:
    from pydantic import BaseModel

    from lt_search.parameters import Parameter


def list_spaces() -> Table:
    """Every shipped space with the first line of its file."""
    table = Table(box=None, pad_edge=False)
    for column in ("space", "trainer", "data", "searches", "what it is"):
        table.add_column(column, overflow="fold")
    for name, text in shipped_spaces().items():
        space = load_space(name)
        tasks = " or ".join(sorted(trainer_type(space.trainer).tasks))
        about = text.splitlines()[0].lstrip("# ") if text.startswith("#") else ""
        table.add_row(name, space.trainer, tasks, str(len(space.search)), about)
    return table


def show_space(name: str) -> Group:
    """One space: its budgets, its ranges, and all fields of its trainer with defaults and meaning.

    Raises:
        UserError: if there is no such space.
    """
    space = load_space(name)
    budgets = Table(title="budgets", title_justify="left", box=None, pad_edge=False)
    for column in ("name", "trials", "image size", "rungs", "fixed"):
        budgets.add_column(column, overflow="fold")
    for budget_name, budget in space.budgets.items():
        size = str(budget.image_size) if budget.image_size else f"of the data, at most {budget.max_image_size}"
        rungs = f"stage 1 {budget.rungs.stage1}, stage 2 {budget.rungs.stage2}, eta {budget.rungs.eta}"
        fixed = ", ".join(f"{field}={value}" for field, value in {**space.set, **budget.set}.items())
        budgets.add_row(budget_name, str(budget.trials), size, rungs, fixed)
    ranges = {budget: space.parameters(budget) for budget in space.budgets}
    table = Table(title=f"fields of {space.trainer}", title_justify="left", box=None, pad_edge=False)
    for column in ("field", "default", "searched", "what it does"):
        table.add_column(column, overflow="fold")
    config = trainer_type(space.trainer).config_type()
    for section in ("stage1", "stage2"):
        model: BaseModel = getattr(config, section)
        for field, info in type(model).model_fields.items():
            found = {budget: parameters.get(f"{section}.{field}") for budget, parameters in ranges.items()}
            texts = {budget: _range(parameter) for budget, parameter in found.items()}
            same = len(set(texts.values())) == 1
            searched = next(iter(texts.values())) if same else "; ".join(f"{b}: {t}" for b, t in texts.items() if t)
            about = " ".join((info.description or "").split())
            table.add_row(f"{section}.{field}", str(getattr(model, field)), searched, Text(about))
    return Group(Text(f"{name}: {space.trainer}, maximises {space.metric}"), Text(), budgets, Text(), table)


def _range(parameter: Parameter | None) -> str:
    if parameter is None:
        return ""
    return parameter.range + (f" when {parameter.when}" if parameter.when else "")
