"""Checkpoints of trials: safetensors files with a checksum and the digest of the configuration they belong to.

A trial has one file for each attempt, which is replaced atomically and never unpickled. A file whose checksum does not
match, or that belongs to another configuration, is reported and not used.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lt_search.storage.records import StepReport, read_reports
from lt_search.storage.run_folder import run_id, trial_folder
from lt_search.storage.strict_json import dumps
from lt_search.storage.trial_config import config_digest, config_in_folder
from trainers.hashing import content_hash, hash_tensors

if TYPE_CHECKING:
    from lt_search.storage.files import FolderStore
    from trainers.base import State

CONFIG, CHECKSUM = "config", "checksum"
"""Metadata keys of a checkpoint; files of earlier versions have neither."""


class DamagedCheckpointError(Exception):
    """A checkpoint that is not as it was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A trial's state after a step, and the report of that step."""

    report: StepReport
    state: State
    history: tuple[StepReport, ...] = ()
    """In stage 1, the reports of the steps before it."""
    verified: bool = True
    """False where it was read from a file of an earlier version, which has no checksum."""


def trainer_of(store: FolderStore, number: int) -> str:
    """The name under which a stage-1 artefact refers to the trial that trained it, such as `ldrnet-0001/7@0f3a...`.

    The part after the `@` is the run's id, since runs in other folders, or of other times, may have the same name.
    """
    run = run_id(store)
    return f"{_shown(store, number)}@{run}" if run else _shown(store, number)


def shown_trainer(trainer: str) -> str:
    """The part of a name from `trainer_of` that is shown to users, such as `ldrnet-0001/7`."""
    return re.sub("@[0-9a-f]+$", "", trainer)


def was_trained_by(trainer: str, store: FolderStore, number: int) -> bool:
    """Whether a name from `trainer_of` is that of this trial."""
    return shown_trainer(trainer) == _shown(store, number) and trainer == trainer_of(store, number)


def _shown(store: FolderStore, number: int) -> str:
    return f"{store.root.name}/{number}"


def _name(number: int, attempt: int) -> str:
    return f"{trial_folder(number)}/checkpoint-a{attempt:03d}.safetensors"


def save_checkpoint(
    store: FolderStore, number: int, attempt: int, config: Mapping[str, Any], checkpoint: Checkpoint
) -> None:
    """Writes the state of an attempt in place of its earlier one; it is durable when this returns."""
    from safetensors.torch import save

    from trainers.state import pack

    tensors, text = pack(checkpoint.state)
    metadata = {
        "state": text,
        "report": checkpoint.report.to_json(),
        "history": dumps([report.to_plain() for report in checkpoint.history]),
        CONFIG: config_digest(config),
    }
    metadata[CHECKSUM] = _checksum(tensors, metadata)
    store.write(_name(number, attempt), save(tensors, metadata))


def load_checkpoint(store: FolderStore, number: int, config: Mapping[str, Any]) -> Checkpoint | None:
    """The furthest intact checkpoint of a trial, over all its attempts; None if there is none.

    Args:
        store: the run's files.
        number: of the trial.
        config: the trial's full nested config. A checkpoint of another one is never returned; one of an earlier
            version, which does not name its config, counts as that of the `config.yaml` beside it.
    """
    digest = config_digest(config)
    best: Checkpoint | None = None
    for name in checkpoint_files(store, number):
        try:
            checkpoint, owner = read_checkpoint(store, name)
        except (DamagedCheckpointError, OSError) as error:
            logging.getLogger(__name__).warning("checkpoint %s cannot be used: %s", store.path(name), error)
            continue
        if (owner or config_in_folder(store, number)) != digest:
            logging.getLogger(__name__).warning(
                "checkpoint %s belongs to another configuration and is not used", store.path(name)
            )
        elif best is None or checkpoint.report.rung > best.report.rung:
            best = checkpoint
    return best


def read_checkpoint(store: FolderStore, name: str) -> tuple[Checkpoint, str | None]:
    """A checkpoint and the digest of its configuration, None in files of earlier versions.

    Raises:
        DamagedCheckpointError: if it is not as it was written.
        OSError: if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    from trainers.state import unpack

    try:
        with safe_open(str(store.path(name)), framework="pt") as file:
            metadata = dict(file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        checksum = metadata.pop(CHECKSUM, None)
        if (checksum or CONFIG in metadata) and checksum != _checksum(tensors, metadata):
            raise DamagedCheckpointError("it is damaged: its checksum does not match")
        history = tuple(StepReport.from_plain(report) for report in json.loads(metadata.get("history", "[]")))
        state = unpack(tensors, metadata["state"])
        report = StepReport.from_json(metadata["report"])
        return Checkpoint(report, state, history, verified=checksum is not None), metadata.get(CONFIG)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"it is damaged: {error}") from error


def _checksum(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    return content_hash(hash_tensors(tensors), dict(metadata))


def checkpoint_files(store: FolderStore, number: int) -> list[str]:
    """Names of a trial's checkpoints, oldest attempt first."""
    return store.list(trial_folder(number), "checkpoint-a*.safetensors")


def remove_checkpoints(store: FolderStore, number: int) -> None:
    """Removes all checkpoints of a trial."""
    for name in checkpoint_files(store, number):
        store.remove(name)


def final_report(store: FolderStore, number: int, config: Mapping[str, Any]) -> StepReport | None:
    """The report of a finished trial's last step: from its log, or from its checkpoint where the log lost the line.

    None where neither has it for this configuration.
    """
    logged = read_reports(store, number) if config_in_folder(store, number) in {None, config_digest(config)} else []
    if logged and logged[-1].final:
        return logged[-1]
    checkpoint = load_checkpoint(store, number, config)
    return checkpoint.report if checkpoint is not None and checkpoint.report.final else None
