"""Fills the report from a run's files."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import yaml
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import METRICS
from lt_search.pruning.rungs import Decision
from lt_search.results.report.content import (
    ClassScore,
    Cost,
    ReportData,
    RungEntry,
    RungRow,
    Score,
    StepValue,
    TrialRow,
    Winner,
)
from lt_search.results.report.page import render
from lt_search.results.summary import RunSummary, TrialSummary, summarise
from lt_search.storage.checkpoints import final_report
from lt_search.storage.records import read_reports
from lt_search.storage.run_folder import LOOKS, POSTHOC, SETTINGS, read_provenance
from lt_search.storage.schema import rung_attribute

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.storage.files import FolderStore
    from lt_search.storage.journal import Journal

REPORT = "report.html"


def write_report(spec: RunSpec, journal: Journal, store: FolderStore) -> None:
    """Writes `report.html` into a run's folder."""
    store.write(REPORT, render(report_data(spec, journal, store)))


def report_data(spec: RunSpec, journal: Journal, store: FolderStore) -> ReportData:
    """Everything the report shows, read from the journal and the trials' logs."""
    summary = summarise(spec, journal)
    metric = METRICS[spec.metric]
    return ReportData(
        title=store.root.name,
        facts=_facts(spec, store, summary),
        metric=spec.metric,
        metric_title=metric.title,
        trials=[_trial_row(spec, store, trial) for trial in summary.trials],
        rungs=_rung_rows(spec, journal),
        winner=_winner(spec, store, summary.best) if summary.best else None,
        importances=_importances(journal),
        cost=_cost(summary, reuse=spec.reuse),
        foresight=summary.foresight,
        turned_off=frozenset(summary.turned_off),
        default_trial=0 if summary.trials and spec.search else None,
        log_parameters=frozenset(name for name, p in spec.parameters.items() if _is_log(p.distribution)),
        notes=(*spec.notes, *summary.notices),
    )


def _facts(spec: RunSpec, store: FolderStore, summary: RunSummary) -> dict[str, str]:
    provenance = read_provenance(store)
    images = ", ".join(f"{count:,} {part}" for part, count in spec.data.images.items())
    s1, s2 = spec.stage_lengths
    return {
        "Space": f"{spec.options['space']} ({spec.trainer}, budget {spec.budget})",
        "Data": f"{spec.data.name}: {len(spec.data.classes)} classes, {images} images at {spec.data.image_size} px",
        "Split": f"{spec.data.split_origin} (hash {spec.data.split_hash})",
        "Test split": _looks(store),
        **_posthoc(store, summary),
        "Stages": f"{s1} steps of stage 1, {s2} of stage 2",
        "Pruning": f"eta {spec.eta}, stage-wise rungs" if spec.prune else "off",
        "Stage 1": _stage1(spec, summary),
        "Proposals": f"{spec.sampler}, seed {spec.seed}",
        "Trials": f"{summary.ended} of {summary.target} done",
        "Started": str(provenance.get("started", "")),
        "Written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "Versions": ", ".join(f"{name} {v}" for name, v in provenance.get("versions", {}).items() if v),
        "Code": str(provenance.get("git") or "not in a git checkout"),
    }


def _stage1(spec: RunSpec, summary: RunSummary) -> str:
    if not spec.reuse:
        return "trained anew in every trial"
    return f"trained to the end {summary.stage1_trained} times, used again by {summary.reused} trials"


def _posthoc(store: FolderStore, summary: RunSummary) -> dict[str, str]:
    """What was tuned after training, where something was."""
    name = f"{POSTHOC}/{SETTINGS}"
    if not store.exists(name):
        return {}
    tuned = _read_tuned(store)
    if "summary" not in tuned:
        return {"After training": f"{name} cannot be read: run `lt-search posthoc {store.root.name}` again"}
    return {"After training": "; ".join([f"{tuned['summary']} (see {POSTHOC}/)", *tuned_before(store, summary)])}


def tuned_before(store: FolderStore, summary: RunSummary) -> list[str]:
    """A sentence if what was tuned after training knows nothing of the run's best trial; else none."""
    then = _read_tuned(store).get("best_trial")
    if then is None or summary.best is None or summary.best.number == then:
        return []
    return [f"tuned before trial {summary.best.number}: run `lt-search posthoc {store.root.name}` again"]


def _read_tuned(store: FolderStore) -> dict[str, Any]:
    """The file of what was tuned after training; empty where it cannot be read."""
    try:
        content = yaml.safe_load(store.read(f"{POSTHOC}/{SETTINGS}"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _looks(store: FolderStore) -> str:
    looks = len(store.read(LOOKS).splitlines()) if store.exists(LOOKS) else 0
    return f"looked at {looks} times (see {LOOKS})" if looks else "not looked at; trials never see it"


def _trial_row(spec: RunSpec, store: FolderStore, trial: TrialSummary) -> TrialRow:
    history = [
        StepValue(
            report.stage,
            report.step,
            report.value if report.value is not None else math.nan,
            report.scalars.get(spec.metric) if report.stage == 1 else None,
        )
        for report in read_reports(store, trial.number)
    ]
    return TrialRow(
        number=trial.number,
        state=trial.state,  # type: ignore[arg-type]
        params=trial.params,
        history=[step for step in history if not math.isnan(step.value) or step.head is not None],
        value=trial.value,
        standard_error=trial.standard_error,
        seconds=sum(trial.seconds.values()) if trial.seconds else None,
        reason=trial.note if trial.state == "failed" else "",
    )


def _rung_rows(spec: RunSpec, journal: Journal) -> list[RungRow]:
    rows = []
    for rung in spec.rung_list:
        entries = []
        for trial in journal.started():
            entry = trial.user_attrs.get(rung_attribute(rung))
            if entry is not None:
                stopped = entry["decision"] == Decision.STOP
                entries.append(RungEntry(trial.number, entry["value"], stopped, entry["standard_error"]))
        rows.append(RungRow(rung.stage, rung.step, entries))
    return rows


def _winner(spec: RunSpec, store: FolderStore, best: TrialSummary) -> Winner | None:
    final = final_report(store, best.number, spec.resolve(best.params))
    if final is None:
        return None
    values, errors = final.per_class.get(spec.metric, []), final.score_errors
    group_of = {i: name for name, members in class_groups(spec.data.train_counts).items() for i in members}
    classes = [
        ClassScore(
            name,
            group_of[index],
            spec.data.train_counts[index],
            None if value is None else Score(value, errors["per_class"][index]),
        )
        for index, (name, value) in enumerate(zip(spec.data.classes, values, strict=False))
    ]
    groups = {
        name: Score(final.scalars[f"{spec.metric}_{name}"], error) for name, error in errors.get("groups", {}).items()
    }
    assert best.value is not None
    overall = Score(best.value, best.standard_error)
    return Winner(best.number, overall, groups, classes, METRICS[spec.metric].class_title)


def _importances(journal: Journal) -> dict[str, float]:
    """fANOVA importances over finished trials; empty where there are too few to tell."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    finished = [trial for trial in journal.trials() if trial.state == TrialState.COMPLETE]
    if len(finished) < 4:
        return {}
    try:
        return get_param_importances(journal.study, evaluator=FanovaImportanceEvaluator(seed=0))
    except (RuntimeError, ValueError):  # all finished trials are equal, or share no parameter
        return {}


def _cost(summary: RunSummary, *, reuse: bool) -> Cost:
    spent = sum(sum(trial.seconds.values()) for trial in summary.trials)
    return Cost(spent, summary.saved_by_pruning, summary.saved_by_reuse if reuse else None)


def _is_log(distribution: object) -> bool:
    return isinstance(distribution, FloatDistribution | IntDistribution) and distribution.log
