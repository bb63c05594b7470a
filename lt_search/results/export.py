"""Exports: a trial's configuration, model, metrics and provenance in a self-contained folder."""

from __future__ import annotations

import errno
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lt_search.config.hints import resume_command
from lt_search.config.spec import RunSpec
from lt_search.errors import Problem, UserError
from lt_search.results.summary import summarise
from lt_search.storage.checkpoints import Checkpoint, load_checkpoint
from lt_search.storage.journal import Journal
from lt_search.storage.run_folder import JOURNAL, read_provenance, repair_command
from lt_search.storage.strict_json import dumps
from trainers.hashing import content_hash, hash_tensors

if TYPE_CHECKING:
    from lt_search.results.summary import RunSummary, TrialSummary
    from lt_search.storage.files import FolderStore
    from lt_search.storage.records import StepReport
    from trainers.base import State

BEST, MODEL, METRICS, PROVENANCE = "best.yaml", "model.safetensors", "metrics.json", "provenance.json"
FOLDER = "best"

EXPORT_AGAIN = "export the run again: lt-search export RUN"
"""Fix for an export that is damaged."""

GPU_TOLERANCE = 0.01
"""Differences in a metric that bfloat16 on a GPU explains."""


def export_run(spec: RunSpec, store: FolderStore) -> Path:
    """Writes the best finished trial of a run: the command `lt-search export`.

    Raises:
        UserError: see `export_best`; also if the journal is damaged.
        OSError: if the run's folder cannot be written.
    """
    summary = summarise(spec, Journal.reader(store.path(JOURNAL)))
    return export_best(spec, store, summary)


def export_best(spec: RunSpec, store: FolderStore, summary: RunSummary, folder: str = FOLDER) -> Path:
    """Writes the best finished trial, see `export_trial`.

    Raises:
        UserError: if no trial has finished, or the best one has no intact weights.
    """
    if summary.best is None:
        raise UserError(
            Problem("export", "no trial of this run has finished", f"resume it: {resume_command(store.root)}")
        )
    return export_trial(spec, store, summary, summary.best, folder)


def export_trial(spec: RunSpec, store: FolderStore, summary: RunSummary, trial: TrialSummary, folder: str) -> Path:
    """Writes a finished trial of the run: `best.yaml`, the model, its metrics and its provenance.

    The files are written beside the folder and read back before they take the places of those of an earlier export,
    `best.yaml` last. It holds the hash of its model, so that `read_export` refuses a mixture of two exports, which a
    kill in between leaves.

    Raises:
        UserError: if the trial has no intact weights; an earlier export stays as it was.
        OSError: if the folder cannot be written.
    """
    from safetensors.torch import save

    from trainers.state import pack

    checkpoint = sound_weights(spec, store, trial)
    if checkpoint is None:
        what = f"trial {trial.number} has no intact weights: they are damaged, missing or of another training"
        raise UserError(Problem("export", what, f"train it again: {repair_command(store.root)}"))
    if not checkpoint.verified and _holds(store.path(folder), trial):
        return store.path(folder)  # nobody could tell whether the checkpoint is still what was exported
    final = checkpoint.report
    tensors, text = pack(checkpoint.state["model"])
    metrics = {
        "trial": trial.number,
        "split": "val",
        spec.metric: trial.value,
        "standard_error": trial.standard_error,
        "scalars": final.scalars,
        "device": final.device,
        "threads": final.threads,
        "classes": spec.data.classes,
        "per_class": final.per_class,
    }
    provenance = {"run": store.root.name, "trial": trial.number, "trials": _counts(summary), **read_provenance(store)}
    new = f"{folder}/.part"
    try:
        store.write(f"{new}/{MODEL}", save(tensors, metadata={"state": text}))
        store.write(f"{new}/{METRICS}", dumps(metrics, indent=2))
        store.write(f"{new}/{PROVENANCE}", dumps(provenance, indent=2))
        content = {
            "trial": trial.number,
            "model_hash": file_hash(store.path(f"{new}/{MODEL}")),
            "params": dict(trial.params),
            "spec": _exported_spec(spec, trial),
        }
        store.write(f"{new}/{BEST}", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        written = read_model(read_export(store.path(new)))
        if _state_digest(written) != _state_digest(checkpoint.state["model"]):
            raise OSError(errno.EIO, "what was written cannot be read back")
        for name in (MODEL, METRICS, PROVENANCE, BEST):
            store.rename(f"{new}/{name}", f"{folder}/{name}")
    finally:
        store.remove(new)
    return store.path(folder)


def _holds(folder: Path, trial: TrialSummary) -> bool:
    """Whether a folder is an intact export of a trial."""
    try:
        return read_export(folder).trial == trial.number
    except UserError:
        return False


def sound_weights(spec: RunSpec, store: FolderStore, trial: TrialSummary) -> Checkpoint | None:
    """The final checkpoint of a finished trial; None if it is damaged or missing, or has another value."""
    checkpoint = load_checkpoint(store, trial.number, spec.resolve(trial.params))
    intact = checkpoint is not None and checkpoint.report.final and reproduces(checkpoint.report, trial)
    return checkpoint if intact else None


def reproduces(report: StepReport, trial: TrialSummary) -> bool:
    """Whether a final report has the trial's value: exactly where a CPU computed it, else within `GPU_TOLERANCE`."""
    if report.value is None or trial.value is None:
        return False
    return abs(report.value - trial.value) <= (0.0 if report.device == "cpu" else GPU_TOLERANCE)


def read_model(export: Export) -> State:
    """The model of an export.

    Raises:
        UserError: if its file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    from trainers.state import unpack

    try:
        with safe_open(str(export.model_file), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            return unpack(tensors, file.metadata()["state"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(Problem(str(export.model_file), f"is damaged: {error}", EXPORT_AGAIN)) from error


def _state_digest(state: State) -> str:
    from trainers.state import pack

    tensors, text = pack(state)
    return content_hash(hash_tensors(tensors), text)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _exported_spec(spec: RunSpec, trial: TrialSummary) -> dict[str, Any]:
    """The run's spec with the winner's values in its config and nothing left to search."""
    resolved = spec.model_copy(update={"config": spec.resolve(trial.params), "search": {}})
    return resolved.model_dump(mode="json")


def _counts(summary: RunSummary) -> dict[str, int]:
    return {
        **{state: len(summary.of_state(state)) for state in ("finished", "pruned", "failed")},
        "running": len(summary.unfinished),
    }


@dataclass(frozen=True)
class Export:
    """An exported configuration, as read from its folder."""

    folder: Path
    trial: int
    spec: RunSpec
    """Its `config` is the winner's, fully resolved."""
    reported: dict[str, float]
    """Validation metrics that the search reported, by name."""
    device: str
    """Kind of device they were computed on."""
    threads: int
    """Threads that torch used for them."""

    @property
    def model_file(self) -> Path:
        """The weights, as safetensors."""
        return self.folder / MODEL


def read_export(folder: Path) -> Export:
    """Reads what `export_best` wrote.

    Raises:
        UserError: naming each file that is missing or cannot be read.
    """
    missing = [name for name in (BEST, MODEL, METRICS) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            Problem(
                str(folder), f"is not an exported configuration: {', '.join(missing)} missing", "give a run's best/"
            )
        )
    try:
        content = yaml.safe_load((folder / BEST).read_text(encoding="utf-8"))
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        intact = content["model_hash"] == file_hash(folder / MODEL)
        same = content["trial"] == metrics["trial"]
        export = Export(
            folder,
            int(content["trial"]),
            RunSpec.model_validate(content["spec"]),
            {str(name): math.nan if value is None else float(value) for name, value in metrics["scalars"].items()},
            str(metrics["device"]),
            int(metrics["threads"]),
        )
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UserError(Problem(str(folder), f"cannot be read: {error!r}", EXPORT_AGAIN)) from error
    if not intact:
        what = f"{MODEL} does not match the hash in {BEST}: it is damaged or of another export"
        raise UserError(Problem(str(folder), what, EXPORT_AGAIN))
    if not same:
        raise UserError(Problem(str(folder), "holds files of two different exports", EXPORT_AGAIN))
    return export
