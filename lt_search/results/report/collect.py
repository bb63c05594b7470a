"""Contents of a run's report, read from its journal and the trials' logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from lt_search.errors import UserError
from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import METRICS
from lt_search.results.report.content import ClassScore, Cost, ReportData, Score, Winner
from lt_search.results.report.page import render
from lt_search.results.summary import RunSummary, TrialSummary, summarise
from lt_search.storage.checkpoints import final_report
from lt_search.storage.journal import is_driven
from lt_search.storage.records import StepReport, read_reports
from lt_search.storage.run_folder import LOOKS, POSTHOC, SETTINGS, read_provenance

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.storage.files import FolderStore
    from lt_search.storage.journal import Journal

T = TypeVar("T")

REPORT = "report.html"
LOG = "metrics.jsonl"


def write_report(spec: RunSpec, journal: Journal, store: FolderStore, *, driven: bool | None = None) -> None:
    """Writes `report.html` into a run's folder.

    Args:
        spec: the run.
        journal: its journal.
        store: its folder.
        driven: whether a search trains the run's unfinished trials now; None: whether a driver holds the run.

    Raises:
        OSError: if the file cannot be written.
    """
    driven = is_driven(store.root) if driven is None else driven
    store.write(REPORT, render(report_data(spec, journal, store, driven=driven)))


def report_data(spec: RunSpec, journal: Journal, store: FolderStore, *, driven: bool) -> ReportData:
    """Everything the report shows.

    Args:
        spec: the run.
        journal: its journal.
        store: its folder.
        driven: whether a search trains the run's unfinished trials now; else they are interrupted.
    """
    summary = summarise(spec, journal, driven=driven)
    history = {trial.number: _history(spec, store, trial.number) for trial in summary.trials}
    metric = METRICS[spec.metric]
    return ReportData(
        title=store.root.name,
        facts=_facts(spec, store, summary),
        metric=spec.metric,
        metric_title=metric.title,
        summary=summary,
        history=history,
        winner=_winner(spec, store, summary.best) if summary.best else None,
        importances=_importances(journal),
        cost=_cost(summary, reuse=spec.reuse),
        default_trial=0 if summary.trials and spec.search else None,
        log_parameters=frozenset(name for name, p in spec.parameters.items() if _is_log(p.distribution)),
        notes=(*spec.notes, *_interrupted(summary), *_incomplete_logs(spec, journal, history)),
    )


def _interrupted(summary: RunSummary) -> list[str]:
    count = len(summary.of_state("interrupted"))
    return [f"The search is not running; interrupted trials: {count}. Continue it with `--resume`."] if count else []


def _incomplete_logs(spec: RunSpec, journal: Journal, history: Mapping[int, Sequence[StepReport]]) -> list[str]:
    """A sentence about trials whose journal has values of steps that their log lacks."""
    damaged = []
    for number, steps in history.items():
        logged = {step.step + (spec.stage_lengths[0] if step.stage == 2 else 0) for step in steps}
        if not logged.issuperset(journal.trial(number).intermediate_values):
            damaged.append(str(number))
    if not damaged:
        return []
    return [
        f"{LOG} is missing or damaged in the folders of trials {', '.join(damaged)}: their learning curves and last "
        "steps are incomplete here. Their states and final values are not affected: they are from the journal."
    ]


def _facts(spec: RunSpec, store: FolderStore, summary: RunSummary) -> dict[str, str]:
    provenance = read_provenance(store)
    versions = provenance.get("versions") or {}
    images = ", ".join(f"{count:,} {part}" for part, count in spec.data.images.items())
    s1, s2 = spec.stage_lengths
    return {
        "Space": f"{spec.options['space']} ({spec.trainer}, budget {spec.budget})",
        "Data": f"{spec.data.name}: {len(spec.data.classes)} classes, {images} images at {spec.data.image_size} px",
        "Split": f"{spec.data.split_origin} (hash {spec.data.split_hash})",
        "Test split": _test_scores(store),
        **_posthoc(store, summary),
        "Stages": f"{s1} steps of stage 1, {s2} of stage 2",
        "Pruning": f"eta {spec.eta}, stage-wise rungs" if spec.prune else "off",
        "Stage 1": _stage1(spec, summary),
        "Proposals": f"{spec.sampler}, seed {spec.seed}",
        "Trials": f"{summary.ended} of {summary.target} done",
        "Started": str(provenance.get("started", "")),
        "Written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "Versions": ", ".join(f"{name} {v}" for name, v in versions.items() if v),
        "Code": str(provenance.get("git") or "not in a git checkout"),
    }


def _stage1(spec: RunSpec, summary: RunSummary) -> str:
    if not spec.reuse:
        return "trained in every trial (reuse is off)"
    return f"{summary.stage1_trained} trained to the end, reused by {summary.reused} trials"


def _posthoc(store: FolderStore, summary: RunSummary) -> dict[str, str]:
    """The post-hoc settings, where there are some."""
    name = f"{POSTHOC}/{SETTINGS}"
    if not store.exists(name):
        return {}
    tuned = _read_tuned(store)
    if "summary" not in tuned:
        return {"After training": f"{name} cannot be read: run `lt-search posthoc {store.root.name}` again"}
    return {"After training": "; ".join([f"{tuned['summary']} (see {POSTHOC}/)", *tuned_before(store, summary)])}


def tuned_before(store: FolderStore, summary: RunSummary) -> list[str]:
    """A sentence if the post-hoc settings are older than the run's best trial; else none."""
    then = _read_tuned(store).get("best_trial")
    if then is None or summary.best is None or summary.best.number == then:
        return []
    return [f"tuned before trial {summary.best.number}: run `lt-search posthoc {store.root.name}` again"]


def _read_tuned(store: FolderStore) -> dict[str, Any]:
    """The file of post-hoc settings; empty where it cannot be read."""
    content = _readable(lambda: yaml.safe_load(store.read(f"{POSTHOC}/{SETTINGS}")))
    return content if isinstance(content, dict) else {}


def _test_scores(store: FolderStore) -> str:
    if not store.exists(LOOKS):
        return "not scored; trials never see it"
    lines = _readable(lambda: store.read(LOOKS).splitlines())
    return f"{LOOKS} cannot be read" if lines is None else f"scored {len(lines)} times (see {LOOKS})"


def _history(spec: RunSpec, store: FolderStore, number: int) -> list[StepReport]:
    """The logged steps of a trial that have a score, of the probe, the stage-1 head or the model."""
    steps = _readable(lambda: read_reports(store, number)) or ()
    return [step for step in steps if step.value is not None or (step.stage == 1 and spec.metric in step.scalars)]


def _readable(read: Callable[[], T]) -> T | None:
    """What `read` returns; None where its file is damaged or cannot be opened."""
    try:
        return read()
    except (OSError, ValueError, yaml.YAMLError, UserError):
        return None


def _winner(spec: RunSpec, store: FolderStore, best: TrialSummary) -> Winner | None:
    """The best trial's scores; None where its last step can be read from neither its log nor its checkpoint."""
    final = _readable(lambda: final_report(store, best.number, spec.resolve(best.params)))
    if final is None:
        return None
    groups = class_groups(spec.data.train_counts)
    group_of = {index: name for name, members in groups.items() for index in members}
    values = final.per_class.get(spec.metric, [])
    class_errors = final.score_errors.get("per_class", [None] * len(values))
    group_errors = final.score_errors.get("groups", {})
    classes = [
        ClassScore(name, group_of[index], spec.data.train_counts[index], None if value is None else Score(value, error))
        for index, (name, value, error) in enumerate(zip(spec.data.classes, values, class_errors, strict=False))
    ]
    means = {
        name: Score(final.scalars[key], group_errors[name])
        for name, _ in groups.items()
        if name in group_errors and (key := f"{spec.metric}_{name}") in final.scalars
    }
    assert best.value is not None
    overall = Score(best.value, best.standard_error)
    return Winner(best.number, overall, means, classes, METRICS[spec.metric].class_title)


def _importances(journal: Journal) -> dict[str, float]:
    """fANOVA importances over finished trials; empty with fewer than four."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    finished = [trial for trial in journal.trials() if trial.state == TrialState.COMPLETE]
    if len(finished) < 4:
        return {}
    try:
        return get_param_importances(journal.study, evaluator=FanovaImportanceEvaluator(seed=0))
    except (RuntimeError, ValueError):  # all finished trials are equal, or share no parameter
        return {}


def _cost(summary: RunSummary, *, reuse: bool) -> Cost:
    spent = sum(trial.total_seconds for trial in summary.trials)
    return Cost(spent, summary.saved_by_pruning, summary.saved_by_reuse if reuse else None)


def _is_log(distribution: object) -> bool:
    return isinstance(distribution, FloatDistribution | IntDistribution) and distribution.log
