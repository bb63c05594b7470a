"""Look-up of trainers by name, by `module:Class`, or among the entry points of installed packages."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from trainers.base import TwoStageTrainer

ENTRY_POINT_GROUP = "lt_search.trainers"
"""A package that brings a trainer lists it here: `name = "module:Class"`."""

BUILT_IN = {
    "cxr": "trainers.methods.cxr:CXRTrainer",
    "decoupled": "trainers.methods.decoupled:DecoupledTrainer",
    "ldrnet": "trainers.methods.ldrnet:LDRNetTrainer",
    "lmd": "trainers.methods.lmd:LMDTrainer",
    "metric": "trainers.methods.metric:MetricTrainer",
}
"""The trainers of this package by name, imported on demand."""


class UnknownTrainer(LookupError):  # noqa: N818 - says what it is
    """No usable trainer of that name; the message says why, `fix` what to do about it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


def available() -> list[str]:
    """Names of all trainers that are built in or installed, sorted."""
    return sorted({*BUILT_IN, *_installed()})


def find_trainer(name: str) -> type[TwoStageTrainer[Any]]:
    """The trainer class `name`: a built-in one, one of an entry point, or `module:Class`. Raises `UnknownTrainer`."""
    if name in BUILT_IN:
        return _load(BUILT_IN[name])
    installed = _installed()
    if name in installed:
        return _load(installed[name].value)
    if ":" in name:
        return _load(name)
    near = difflib.get_close_matches(name, available(), n=1, cutoff=0.75)
    fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(available())}, or module:Class"
    raise UnknownTrainer(f"unknown trainer {name!r}", fix)


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _load(target: str) -> type[TwoStageTrainer[Any]]:
    module_name, _, class_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module of the user's can raise anything, and call sys.exit
        what = f"trainer {target!r} cannot be imported: {type(error).__name__}: {error}"
        missing = isinstance(error, ModuleNotFoundError) and module_name.startswith(str(error.name))
        raise UnknownTrainer(what, _IMPORTABLE if missing else f"correct {module_name or 'the name'}") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, TwoStageTrainer)):
        what = f"trainer {target!r} is not a class derived from trainers.base.TwoStageTrainer"
        raise UnknownTrainer(what, "write module:Class, with the name of the trainer's class")
    lacks = [*found.__abstractmethods__, *(name for name in _ATTRIBUTES if not hasattr(found, name))]
    if lacks:
        raise UnknownTrainer(f"trainer {target!r} is incomplete: it lacks {', '.join(sorted(lacks))}", "define them")
    return found


_ATTRIBUTES = ("name", "config_type", "tasks", "code_version")
"""Class attributes that every trainer defines."""

_IMPORTABLE = "install the package, or put its folder on PYTHONPATH, for the driver and for the workers on every node"
"""How a module of the user's becomes importable."""
