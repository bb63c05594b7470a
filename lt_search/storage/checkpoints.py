"""Checkpoints of trials: one safetensors file an attempt, replaced atomically, never unpickled."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lt_search.storage.records import StepReport, read_reports
from lt_search.storage.run_folder import run_id, trial_folder

if TYPE_CHECKING:
    from lt_search.storage.files import FolderStore
    from trainers.base import State


@dataclass(frozen=True)
class Checkpoint:
    """A trial's state after a step, with the report of that step."""

    report: StepReport
    state: State
    history: tuple[StepReport, ...] = ()
    """In stage 1, the reports of the steps before it."""


def trainer_of(store: FolderStore, number: int) -> str:
    """How a stage 1 names the trial of a run that trained it, such as `ldrnet-0001/7@0f3a...`.

    What follows the `@` is the run's id, since runs of other folders, or of other times, may have the same name.
    """
    run = run_id(store)
    return f"{_shown(store, number)}@{run}" if run else _shown(store, number)


def shown_trainer(trainer: str) -> str:
    """What people read of a name that `trainer_of` gave, such as `ldrnet-0001/7`."""
    return re.sub("@[0-9a-f]+$", "", trainer)


def was_trained_by(trainer: str, store: FolderStore, number: int) -> bool:
    """Whether a name that `trainer_of` gave is that of this trial."""
    return shown_trainer(trainer) == _shown(store, number) and trainer == trainer_of(store, number)


def _shown(store: FolderStore, number: int) -> str:
    return f"{store.root.name}/{number}"


def _name(number: int, attempt: int) -> str:
    return f"{trial_folder(number)}/checkpoint-a{attempt:03d}.safetensors"


def save_checkpoint(store: FolderStore, number: int, attempt: int, checkpoint: Checkpoint) -> None:
    """Writes the state of an attempt in place of its earlier one."""
    from safetensors.torch import save_file

    from trainers.state import pack

    tensors, text = pack(checkpoint.state)
    history = json.dumps([asdict(report) for report in checkpoint.history])
    metadata = {"state": text, "report": checkpoint.report.to_json(), "history": history}
    name = _name(number, attempt)
    store.write_with(name, lambda path: save_file(tensors, str(path), metadata=metadata))


def load_checkpoint(store: FolderStore, number: int) -> Checkpoint | None:
    """The furthest readable checkpoint of a trial over all its attempts; None if there is none.

    A damaged file is reported and passed over: the trial then goes on from an earlier state, or starts again.
    """
    best: Checkpoint | None = None
    for name in checkpoint_files(store, number):
        checkpoint = _read(store, name)
        if checkpoint and (best is None or checkpoint.report.rung > best.report.rung):
            best = checkpoint
    return best


def checkpoint_files(store: FolderStore, number: int) -> list[str]:
    """Names of a trial's checkpoints, oldest attempt first."""
    return store.list(trial_folder(number), "checkpoint-a*.safetensors")


def remove_checkpoints(store: FolderStore, number: int) -> None:
    """Drops all checkpoints of a trial."""
    for name in checkpoint_files(store, number):
        store.remove(name)


def _read(store: FolderStore, name: str) -> Checkpoint | None:
    from safetensors import SafetensorError, safe_open

    from trainers.state import unpack

    try:
        with safe_open(str(store.path(name)), framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        state = unpack(tensors, metadata["state"])
        history = tuple(StepReport.from_dict(report) for report in json.loads(metadata.get("history", "[]")))
        return Checkpoint(StepReport.from_json(metadata["report"]), state, history)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        logging.getLogger(__name__).warning("checkpoint %s is damaged and is not used: %s", name, error)
        return None


def final_report(store: FolderStore, number: int) -> StepReport | None:
    """The report of a finished trial's last step: of its log, or of its checkpoint where the log lost the line."""
    logged = read_reports(store, number)
    if logged and logged[-1].final:
        return logged[-1]
    checkpoint = load_checkpoint(store, number)
    return checkpoint.report if checkpoint is not None and checkpoint.report.final else None
