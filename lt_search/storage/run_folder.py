"""The folder of a run: its name, its spec, and whether another run may have that name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lt_search.config.names import numbered_stem, run_name_problem
from lt_search.config.spec import DIGEST, RunSpec, check_digest, spec_digest
from lt_search.config.validation import read_yaml, validation_problems
from lt_search.errors import Problem, UserError
from lt_search.storage.files import FolderStore
from lt_search.storage.provenance import RUN_ID

SPEC = "run.yaml"
COMPARISON = "comparison.yaml"
"""What makes a folder a comparison, whose sub-folders are runs."""
JOURNAL = "journal.log"
LOOKS = "test_looks.jsonl"
"""Every look at the run's test split, one line each."""
POSTHOC = "posthoc"
"""What was tuned after training: settings in a file, the models they need beside it."""
SETTINGS = "posthoc.yaml"
PROVENANCE = "provenance"
"""Key of `run.yaml` for facts that do not decide results: versions, git, when."""


def run_names(storage: FolderStore) -> list[str]:
    """Names of all runs in a storage."""
    return [Path(name).parent.name for name in storage.list(".", f"*/{SPEC}")]


def shared_storage(store: FolderStore) -> FolderStore:
    """The storage whose stage 1s a run shares: where it lies, or where the comparison lies of which it is a row."""
    parent = FolderStore(store.root.parent)
    return FolderStore(parent.root.parent) if parent.exists(COMPARISON) else parent


def check_name(storage: FolderStore, name: str | None, spec: RunSpec) -> None:
    """Raises `UserError` if a new run cannot have this name; None is always free."""
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
    """Makes the folder of a new run and writes its spec.

    Args:
        storage: where runs are.
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
        UserError: if there is no such run, or its `run.yaml` cannot be read.
    """
    store = find_folder(storage, name, SPEC)
    if store.exists(COMPARISON):
        rows = ", ".join(str(row) for row in run_names(store)) or "none begun"
        raise UserError(
            Problem(place, f"{name!r} is a comparison", f"name one of its runs, {name}/ROW; there are: {rows}")
        )
    if not store.exists(SPEC):
        names = run_names(storage)
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"runs there: {', '.join(names) or 'none'}"
        raise UserError(Problem(place, f"{name!r} is no run in {storage.root} (it has no {SPEC})", hint))
    path = str(store.path(SPEC))
    content = read_yaml(store.read(SPEC), path)
    if not isinstance(content, dict):
        raise UserError(Problem(path, "must be a mapping of names to values", "bring it back from a copy"))
    facts = content.pop(PROVENANCE, None)
    check_digest(content, facts, path)
    try:
        return store, RunSpec.model_validate(content)
    except ValidationError as error:
        raise UserError(*validation_problems(error, path)) from error


def find_folder(storage: FolderStore, name: str, marker: str) -> FolderStore:
    """The folder that a name or a path means: a path where it is absolute or leads to `marker` from here."""
    path = Path(name)
    return FolderStore(path if path.is_absolute() or (path / marker).is_file() else storage.path(name))


def read_provenance(store: FolderStore) -> dict[str, Any]:
    """The facts kept beside a run's spec."""
    return dict(yaml.safe_load(store.read(SPEC)).get(PROVENANCE, {}))


def run_id(store: FolderStore) -> str:
    """The id of a run; empty where it has none: one of an earlier version, or a folder without `run.yaml`."""
    return str(read_provenance(store).get(RUN_ID, "")) if store.exists(SPEC) else ""


def claim(storage: FolderStore, name: str) -> FolderStore | None:
    """Makes a new folder in a storage; None if there is one of that name."""
    try:
        storage.path(name).mkdir(parents=True)  # fails for all but one of several drivers that want the name
    except FileExistsError:
        return None
    return FolderStore(storage.path(name))


def claim_numbered(storage: FolderStore, stem: str) -> FolderStore:
    """Makes a new folder `stem-0001`, or with the next free number."""
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
        return Problem("--name", f"{storage.path(name)} exists and is no run", "give another name")
    if existing == spec:
        return Problem("--name", f"the run {name!r} exists, with this very spec", f"go on with it: --resume {name}")
    changed = sorted(
        key for key in RunSpec.model_fields if getattr(existing, key) != getattr(spec, key) and key != "notes"
    )
    return Problem(
        "--name", f"the run {name!r} exists with another spec (it differs in {', '.join(changed)})", "give another name"
    )


def trial_folder(number: int) -> str:
    """Name of a trial's folder in the run's store."""
    return f"trials/{number:04d}"
