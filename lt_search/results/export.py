"""The best configuration and its model, in a folder that stands on its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lt_search.config.spec import RunSpec
from lt_search.errors import Problem, UserError
from lt_search.storage.checkpoints import load_checkpoint
from lt_search.storage.run_folder import read_provenance

if TYPE_CHECKING:
    from lt_search.results.summary import RunSummary, TrialSummary
    from lt_search.storage.files import FolderStore

BEST, MODEL, METRICS, PROVENANCE = "best.yaml", "model.safetensors", "metrics.json", "provenance.json"
FOLDER = "best"


def export_best(spec: RunSpec, store: FolderStore, summary: RunSummary, folder: str = FOLDER) -> Path:
    """Writes the best finished trial, see `export_trial`.

    Raises:
        UserError: if no trial has finished, or the best one's weights are gone.
    """
    if summary.best is None:
        raise UserError(Problem("export", "no trial of this run has finished", "go on with the run: --resume"))
    return export_trial(spec, store, summary, summary.best, folder)


def export_trial(spec: RunSpec, store: FolderStore, summary: RunSummary, trial: TrialSummary, folder: str) -> Path:
    """Writes a finished trial of the run: `best.yaml`, the model, its metrics and its provenance.

    Each file is replaced whole, and `best.yaml`, written last, holds the hash of its model: `read_export` tells if a
    kill in between left the files of two exports together.

    Raises:
        UserError: if the trial's weights are gone.
    """
    from safetensors.torch import save_file

    from trainers.state import pack

    checkpoint = load_checkpoint(store, trial.number)
    if checkpoint is None or not checkpoint.report.final:
        raise UserError(Problem("export", f"the weights of trial {trial.number} are gone", "train it again"))
    tensors, text = pack(checkpoint.state["model"])
    store.write_with(f"{folder}/{MODEL}", lambda path: save_file(tensors, str(path), metadata={"state": text}))
    final = checkpoint.report
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
    store.write(f"{folder}/{METRICS}", json.dumps(metrics, indent=2))
    provenance = {"run": store.root.name, "trial": trial.number, "trials": _counts(summary), **read_provenance(store)}
    store.write(f"{folder}/{PROVENANCE}", json.dumps(provenance, indent=2))
    model_hash = file_hash(store.path(f"{folder}/{MODEL}"))
    content = {
        "trial": trial.number,
        "model_hash": model_hash,
        "params": dict(trial.params),
        "spec": _exported_spec(spec, trial),
    }
    store.write(f"{folder}/{BEST}", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return store.path(folder)


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
    """An exported configuration, read back."""

    folder: Path
    trial: int
    spec: RunSpec
    """Its `config` is the winner's, fully resolved."""
    reported: dict[str, float]
    """Validation metrics that the search reported, by name."""
    device: str
    """Where they were computed."""
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
            Problem(str(folder), f"is no exported configuration: {', '.join(missing)} missing", "give a run's best/")
        )
    try:
        content = yaml.safe_load((folder / BEST).read_text(encoding="utf-8"))
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        same = content["model_hash"] == file_hash(folder / MODEL) and content["trial"] == metrics["trial"]
        export = Export(
            folder,
            int(content["trial"]),
            RunSpec.model_validate(content["spec"]),
            {str(name): float(value) for name, value in metrics["scalars"].items()},
            str(metrics["device"]),
            int(metrics["threads"]),
        )
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(Problem(str(folder), f"cannot be read: {error!r}", "export the run again")) from error
    if not same:
        raise UserError(Problem(str(folder), "holds files of two different exports", "export the run again"))
    return export
