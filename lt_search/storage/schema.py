"""The journal's schema: user attributes of trials and of the study."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from lt_search.pruning.probe_audit import Evidence, Foresight
from lt_search.pruning.rungs import Decision, Record, Rung

if TYPE_CHECKING:
    from lt_search.storage.journal import Journal

ADDRESS, ATTEMPT, FAILURE, FINAL, STOPPED, COST = "stage1_address", "attempt", "failure", "final", "stopped", "cost"


REUSED = "stage1_reused_from"
"""User attributes of a trial in the journal, beside one per rung (see `rung_attribute`) and the stages' costs."""


TRIALS = "trials"
"""User attribute of the study: how many trials to propose in all."""


def rung_attribute(rung: Rung) -> str:
    """Name of the user attribute that holds what happened at a rung."""
    return f"rung:{rung.stage}:{rung.step}"


def off_attribute(rung: Rung) -> str:
    """Name of the user attribute of the study that says why a rung was turned off."""
    return f"off:{rung.stage}:{rung.step}"


def journal_records(trials: Iterable[FrozenTrial], rungs: Iterable[Rung]) -> list[Record]:
    """The records of all rungs as the journal has them: the state of the rung machine."""
    records = []
    points = tuple(rungs)
    for trial in trials:
        for rung in points:
            entry = trial.user_attrs.get(rung_attribute(rung))
            if entry is not None and entry["counts"]:
                records.append(Record(rung, entry["key"], entry["value"], entry["standard_error"]))
    return records


def first_decisions(trials: Iterable[FrozenTrial], rungs: Iterable[Rung]) -> dict[tuple[Rung, str], Decision]:
    """What each key was told at each rung when it came there first, as the journal has it."""
    found: dict[tuple[Rung, str], Decision] = {}
    points = tuple(rungs)
    for trial in trials:
        for rung in points:
            entry = trial.user_attrs.get(rung_attribute(rung))
            if entry is not None and entry["counts"]:
                found[rung, entry["key"]] = Decision(entry["decision"])
    return found


def stage1_evidence(trials: Iterable[FrozenTrial], rungs: Iterable[Rung]) -> Evidence:
    """What the journal knows of each stage-1 address. Journals of earlier versions hold no value of its head."""
    points = {rung: rung_attribute(rung) for rung in rungs if rung.stage == 1}
    evidence = Evidence(points)
    for trial in trials:
        for rung, name in points.items():
            entry = trial.user_attrs.get(name)
            if entry is not None and entry["counts"]:
                evidence.record(rung, entry["key"], entry["value"], entry.get("head_value"))
        if trial.state == TrialState.COMPLETE:
            evidence.finish(trial.user_attrs[ADDRESS], trial.values[0])
    return evidence


def turned_off(journal: Journal, rungs: Iterable[Rung]) -> dict[Rung, Foresight]:
    """The rungs that were turned off in a run, with what that was decided on."""
    attributes = journal.study.user_attrs
    names = {rung: off_attribute(rung) for rung in rungs}
    return {rung: Foresight.from_json(rung, attributes[name]) for rung, name in names.items() if name in attributes}
