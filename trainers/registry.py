"""Finds a trainer by its name, by `module:Class`, or among the installed packages' entry points."""

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
"""The trainers of this package by name; imported when they are asked for."""


class UnknownTrainer(LookupError):  # noqa: N818 - says what it is
    """No trainer of that name; the message says what there is, or why `module:Class` gives none."""


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
    close = difflib.get_close_matches(name, available(), n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else "give one of these, or module:Class"
    raise UnknownTrainer(f"unknown trainer {name!r}; there are: {', '.join(available())}; {hint}")


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _load(target: str) -> type[TwoStageTrainer[Any]]:
    module_name, _, class_name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownTrainer(f"trainer {target!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, TwoStageTrainer)):
        raise UnknownTrainer(f"trainer {target!r} is no class derived from trainers.base.TwoStageTrainer")
    return found
