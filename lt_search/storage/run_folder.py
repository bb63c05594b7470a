"""The folder of a run: its name, its spec and its layout."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lt_search.config.hints import resume_command
from lt_search.config.names import numbered_stem, run_name_problem
from lt_search.config.spec import DIGEST, RunSpec, check_digest, spec_digest
from lt_search.config.validation import read_yaml, validation_problems
from lt_search.errors import Problem, UserError, did_you_mean
from lt_search.storage.files import FolderStore
from lt_search.storage.provenance import RUN_ID

SPEC = "run.yaml"
COMPARISON = "comparison.yaml"
"""What makes a folder a comparison, whose sub-folders are runs."""
JOURNAL = "journal.log"
TRIALS_FOLDER = "trials"
SET_ASIDE = "set-aside"
"""Files that `lt-search repair` took out of the run, in a folder for each time."""
LOOKS = "test_looks.jsonl"
"""Evaluations on the run's test split, one line each."""
POSTHOC = "posthoc"
"""Settings that were tuned after training, and the models they need."""
SETTINGS = "posthoc.yaml"
PROVENANCE = "provenance"
"""Key of `run.yaml` for facts that do not decide results: versions, git, when."""


def run_names(storage: FolderStore) -> list[str]:
    """Names of all runs in a storage."""
    return [Path(name).parent.name for name in storage.list(".", f"*/{SPEC}")]


def shared_storage(store: FolderStore) -> FolderStore:
    """The storage whose stage-1 artefacts a run shares: the run's own, or for a row that of its comparison."""
    parent = FolderStore(store.root.parent)
    return FolderStore(parent.root.parent) if parent.exists(COMPARISON) else parent


def check_name(storage: FolderStore, name: str | None, spec: RunSpec) -> None:
    """Raises `UserError` if a new run cannot have this name; None is always accepted."""
    if name is None:
        return
    check_folder_name(name)
    if storage.exists(name):
        raise UserError(_taken(storage, name, spec))


def check_folder_name(name: str) -> None:
    """Raises `UserError` if a name given by the user cannot be a folder's."""
    if problem := run_name_problem(name):
        raise UserError(Problem("--name", *problem))


def new_run(storage: FolderStore, name: str | None, spec: RunSpec, provenance: dict[str, Any]) -> FolderStore:
    """Creates the folder of a new run and writes its spec.

    Args:
        storage: the folder of all runs.
        name: as given by the user; None: the space's name with the next free number.
        spec: the run.
        provenance: facts to keep beside the spec.

    Raises:
        UserError: if the name is taken or cannot be a folder's.
    """
    check_name(storage, name, spec)
    if name is None:
        store = claim_numbered(storage, numbered_stem(spec.options["space"]))
    elif (claimed := claim(storage, name)) is not None:
        store = claimed
    else:
        raise UserError(_taken(storage, name, spec))
    content = spec.model_dump(mode="json")
    content[PROVENANCE] = {**provenance, DIGEST: spec_digest(content)}
    store.write(SPEC, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return store


def open_run(storage: FolderStore, name: str, place: str = "--resume") -> tuple[FolderStore, RunSpec]:
    """The folder and the spec of an existing run, named by its name or its path.

    Raises:
        UserError: if the run does not exist, or its `run.yaml` cannot be read.
    """
    store = find_folder(storage, name, SPEC)
    if store.exists(COMPARISON):
        rows = ", ".join(str(row) for row in run_names(store)) or "none has started"
        raise UserError(Problem(place, f"{name!r} is a comparison", f"name one of its runs, {name}/ROW; found: {rows}"))
    if not store.exists(SPEC):
        names = run_names(storage)
        fix = did_you_mean(name, names, f"runs found: {', '.join(names) or 'none'}")
        raise UserError(Problem(place, f"{name!r} is not a run in {storage.root} (it has no {SPEC})", fix))
    content, path = _read_spec(store), str(store.path(SPEC))
    check_digest(content, content.pop(PROVENANCE, None), path)
    try:
        return store, RunSpec.model_validate(content)
    except ValidationError as error:
        raise UserError(*validation_problems(error, path)) from error


def _read_spec(store: FolderStore) -> dict[str, Any]:
    """The content of `run.yaml`; raises `UserError` if it cannot be read, or its provenance is not a mapping."""
    path = str(store.path(SPEC))
    fix = "bring the file back from a copy, or start a new run"
    try:
        content = read_yaml(store.read(SPEC), path)
    except OSError as error:
        raise UserError(Problem(path, f"cannot be read: {error.strerror}", fix)) from error
    if not isinstance(content, dict) or not isinstance(content.get(PROVENANCE) or {}, dict):
        raise UserError(Problem(path, "is not the mapping that was written", fix))
    return content


def find_folder(storage: FolderStore, name: str, marker: str) -> FolderStore:
    """The folder that a name or a path means: a path where it is absolute or leads to `marker` from here."""
    path = Path(name)
    return FolderStore(path if path.is_absolute() or (path / marker).is_file() else storage.path(name))


def read_provenance(store: FolderStore) -> dict[str, Any]:
    """The facts kept beside a run's spec."""
    return dict(_read_spec(store).get(PROVENANCE) or {})


def run_id(store: FolderStore) -> str:
    """The id of a run; empty where it has none: one of an earlier version, or a folder without `run.yaml`."""
    return str(read_provenance(store).get(RUN_ID, "")) if store.exists(SPEC) else ""


def claim(storage: FolderStore, name: str) -> FolderStore | None:
    """Creates a folder in a storage; None if the name is taken."""
    try:
        storage.path(name).mkdir(parents=True)  # fails for all but one of several drivers that want the name
    except FileExistsError:
        return None
    return FolderStore(storage.path(name))


def claim_numbered(storage: FolderStore, stem: str) -> FolderStore:
    """Creates a folder `stem-0001`, or with the next free number."""
    number = 1
    while True:
        store = claim(storage, f"{stem}-{number:04d}")
        if store is not None:
            return store
        number += 1


def _taken(storage: FolderStore, name: str, spec: RunSpec) -> Problem:
    try:
        _, existing = open_run(storage, name)
    except UserError:
        return Problem("--name", f"{storage.path(name)} exists and is not a run", "give another name")
    if existing == spec:
        return Problem(
            "--name", f"the run {name!r} exists with the same spec", f"resume it: {resume_command(storage.path(name))}"
        )
    changed = sorted(
        key for key in RunSpec.model_fields if getattr(existing, key) != getattr(spec, key) and key != "notes"
    )
    return Problem(
        "--name", f"the run {name!r} exists with another spec (it differs in {', '.join(changed)})", "give another name"
    )


def trial_folder(number: int) -> str:
    """Name of a trial's folder in the run's store."""
    return f"{TRIALS_FOLDER}/{number:04d}"


def trial_numbers(run: Path) -> set[int]:
    """The numbers of the trials of a run that have a folder with files in it."""
    folders = (path for path in (run / TRIALS_FOLDER).glob("[0-9]*") if path.name.isdecimal() and path.is_dir())
    return {int(path.name) for path in folders if any(path.iterdir())}


def repair_command(run: Path) -> str:
    """The command that mends a damaged run, to be shown as a fix."""
    return f"lt-search repair {shlex.quote(str(run))}"


def set_aside(store: FolderStore, *names: str) -> str:
    """Moves files and folders out of a run, into a new folder of its `set-aside/`, whose name is returned."""
    folder = claim_numbered(FolderStore(store.path(SET_ASIDE)), time.strftime("%Y%m%dT%H%M%S")).root
    name = str(folder.relative_to(store.root))
    for moved in names:
        store.rename(moved, f"{name}/{moved}")
    return name
