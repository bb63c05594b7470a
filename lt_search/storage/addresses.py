"""Addresses of stage-1 runs: equal for two trials exactly if their stage 1 is the same computation.

A stored stage 1 equals a trained one bit for bit on the same kind of processor with the same versions of the libraries.
On another model of CPU or GPU of the same compute kind, or with another numpy, it equals it up to rounding; an artefact
notes what it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from lt_search.config.parameters import active_names
from lt_search.config.spec import RunSpec, extra_key, parse_config, trainer_type
from lt_search.config.values import flatten
from lt_search.storage.stage_store import FORMAT
from lt_search.storage.trainer_source import source_digest
from trainers.hashing import content_hash


def stage1_address(spec: RunSpec, values: Mapping[str, Any], compute: str = "cpu:1") -> str:
    """The address of a trial's stage 1.

    Of the stage-1 fields only those that differ from their defaults count, and of a built-in trainer its name and
    `code_version`. So neither a new field with a default nor moving a trainer changes an address.

    Args:
        spec: the run.
        values: the parameters that were sampled for the trial, by flat name. Inactive ones are replaced by the base
            config's values, which the trainer gets for them and may read.
        compute: the kind of processor, see `compute_kind`.
    """
    trainer = trainer_type(spec.trainer)
    base = flatten(spec.config)
    flat = {**base, **values}
    active = set(active_names(spec.parameters, flat))
    flat |= {name: base[name] for name in spec.search if name not in active}
    config = parse_config(trainer.config_type, flat)
    stage1 = changed_fields(config.stage1)
    for resource in config.resources():  # by content, wherever the file is
        stage1[resource.field.removeprefix("stage1.")] = spec.resources.get(resource.key, resource.source)
    return content_hash(
        {
            "trainer": [trainer.name, source_digest(trainer)],
            "code_version": trainer.code_version,
            "torch": version("torch"),
            "compute": compute,
            "format": FORMAT,
            "stage1": stage1,
            "data": spec.data.fingerprint,
            "split": spec.data.split_hash,
            # Validation pixels count too: validation features and probe scores are stored with a stage 1.
            "pixels": [spec.data.pixels.get("train"), spec.data.pixels.get("val")],
            "image_size": spec.data.image_size,
            "seed": spec.seed,
            **_extra_data(spec),
        }
    )


def changed_fields(model: BaseModel, default: BaseModel | None = None) -> dict[str, Any]:
    """The fields of a config, as JSON values, that differ from those of a default: of its type's own, if None is given.

    Fields of a nested config are compared one by one where the default has the same type.
    """
    default = type(model).model_construct() if default is None else default
    plain, defaults = model.model_dump(mode="json"), default.model_dump(mode="json", warnings=False)
    changed = {name: value for name, value in plain.items() if name not in defaults or value != defaults[name]}
    for name in changed:
        value, usual = getattr(model, name), getattr(default, name, None)
        if isinstance(value, BaseModel) and isinstance(usual, BaseModel) and type(value) is type(usual):
            changed[name] = changed_fields(value, usual)
    return changed


def _extra_data(spec: RunSpec) -> dict[str, Any]:
    """Additional training data, in order; nothing where there is none."""
    extra = spec.data.extra
    if not extra:
        return {}
    pixels = [spec.data.pixels.get(extra_key(number)) for number in range(1, len(extra) + 1)]
    return {"extra_data": [[facts.fingerprint, found] for facts, found in zip(extra, pixels, strict=True)]}


def compute_kind(device: str, threads: int) -> str:
    """What decides the order of floating-point sums: the device type and, on a CPU, the number of threads."""
    return f"{device}:{threads}" if device == "cpu" else device
