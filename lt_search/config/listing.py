"""Tables of search spaces: all of them, and every field of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lt_search.config.budget_resolver import check_space
from lt_search.config.space import load_space, shipped_spaces
from lt_search.config.spec import tasks_of, trainer_type

if TYPE_CHECKING:
    from pydantic import BaseModel

    from lt_search.config.parameters import Parameter


def list_spaces() -> Group:
    """Every shipped space with the first line of its file."""
    parts: list[Text | Padding] = []
    for name, text in shipped_spaces().items():
        space = load_space(name)
        tasks = " or ".join(tasks_of(trainer_type(space.trainer), space.metric))
        about = text.splitlines()[0].lstrip("# ") if text.startswith("#") else ""
        searches = f"{len(space.search)} parameters" + (f" in each of {len(space.rows)} rows" if space.rows else "")
        parts.append(Text(f"{name}: {space.trainer}, {tasks} data, {searches}"))
        parts.append(Padding(Text(about), (0, 0, 0, 4)))
    return Group(*parts)


def show_space(name: str) -> Group:
    """One space: its budgets, its ranges, and all fields of its trainer with defaults and meaning.

    Raises:
        UserError: if there is no such space, or it has mistakes that a search would find.
    """
    space = load_space(name)
    check_space(space, name)
    budgets = Table(title="budgets", title_justify="left", box=None, pad_edge=False)
    for column in ("name", "trials", "image size", "rungs", "fixed"):
        budgets.add_column(column, overflow="fold", no_wrap=column in {"name", "fixed"})
    for budget_name, budget in space.budgets.items():
        size = str(budget.image_size) if budget.image_size else f"of the data, at most {budget.max_image_size}"
        rungs = f"stage 1 {budget.rungs.stage1}, stage 2 {budget.rungs.stage2}, eta {budget.rungs.eta}"
        fixed = "\n".join(f"{field}={value}" for field, value in {**space.set, **budget.set}.items())
        budgets.add_row(budget_name, str(budget.trials), size, rungs, fixed)
    rows = Table(title="rows, each searched by itself", title_justify="left", box=None, pad_edge=False)
    for column in ("row", "fixed", "searched beside the common ones"):
        rows.add_column(column, overflow="fold", no_wrap=column == "row")
    for row_name, row in space.rows.items():
        fixed = ", ".join(f"{field}={value}" for field, value in row.set.items())
        own = space.parameters(next(iter(space.budgets)), row_name)
        rows.add_row(row_name, fixed, ", ".join(f"{field} {_range(own[field])}" for field in row.search))
    ranges = {budget: space.parameters(budget) for budget in space.budgets}
    table = Table(title=f"fields of {space.trainer}", title_justify="left", box=None, pad_edge=False)
    for column in ("field", "default", "searched", "description"):
        table.add_column(column, overflow="fold", no_wrap=column == "field")
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
    title = Text(f"{name}: {space.trainer}, maximises {space.metric}")
    parts: list[Text | Table] = [title, Text(), budgets, Text(), table]
    if space.rows:
        parts[4:4] = [rows, Text()]
    return Group(*parts)


def _range(parameter: Parameter | None) -> str:
    if parameter is None:
        return ""
    return parameter.range + (f" when {parameter.when}" if parameter.when else "")
