"""The configuration that the files in a trial's folder belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from lt_search.errors import UserError
from lt_search.storage.run_folder import set_aside, trial_folder
from trainers.hashing import content_hash

if TYPE_CHECKING:
    from lt_search.storage.files import FolderStore

_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast where PyYAML has libyaml."""


def config_digest(config: Mapping[str, Any]) -> str:
    """A digest of a trainer's full nested config.

    Numbers of equal value count as equal (1 and 1.0), and so do lists and tuples: a config has the same digest before
    and after it was written to YAML.
    """
    return content_hash(_normalised(config))


def _normalised(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _normalised(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalised(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def config_in_folder(store: FolderStore, number: int) -> str | None:
    """The digest of the configuration in a trial's folder; None where the folder has none that can be read."""
    try:
        content = yaml.load(store.read(_name(number)), _SafeLoader)
    except (OSError, UserError, yaml.YAMLError, ValueError, RecursionError):
        return None
    return config_digest(content) if isinstance(content, dict) else None


def claim_trial_folder(store: FolderStore, number: int, config: Mapping[str, Any]) -> bool:
    """Prepares a trial's folder for a configuration, and writes its `config.yaml`.

    Files of another configuration (of a run whose journal was replaced or edited) are moved out of the run: neither
    their checkpoints nor their log may be taken for this trial's. To be called before any of them is read.

    Returns:
        Whether files were moved.
    """
    folder = trial_folder(number)
    foreign = bool(store.list(folder))
    if foreign and config_in_folder(store, number) == config_digest(config):
        return False
    if foreign:
        set_aside(store, folder)
    store.write(_name(number), yaml.safe_dump(dict(config), sort_keys=False))
    return foreign


def _name(number: int) -> str:
    return f"{trial_folder(number)}/config.yaml"
