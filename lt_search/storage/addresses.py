"""The address of a stage 1: equal for two trials exactly if their stage 1 is the same computation."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from lt_search.config.parameters import active_names
from lt_search.config.spec import RunSpec, extra_key, parse_config, trainer_type
from lt_search.config.values import flatten
from lt_search.storage.stage_store import FORMAT
from lt_search.storage.trainer_source import source_digest
from trainers.hashing import content_hash


def stage1_address(spec: RunSpec, values: Mapping[str, Any], compute: str = "cpu:1") -> str:
    """The address of the stage 1 of a trial.

    Args:
        spec: the run.
        values: the parameters that the trial drew, by flat name. Inactive ones do not count: the trainer gets the base
            config's values for them, and those do, since it may read them all the same.
        compute: on what it is trained, see `compute_kind`: other kinds give other last bits.
    """
    trainer = trainer_type(spec.trainer)
    base = flatten(spec.config)
    flat = {**base, **values}
    active = set(active_names(spec.parameters, flat))
    flat |= {name: base[name] for name in spec.search if name not in active}
    config = parse_config(trainer.config_type, flat)
    # As the trainer sees them: 1 and 1.0 are one learning rate, and a file of weights is what it holds, wherever it is.
    stage1 = config.stage1.model_dump(mode="json")
    for resource in config.resources():
        stage1[resource.field.removeprefix("stage1.")] = spec.resources.get(resource.key, resource.source)
    return content_hash(
        {
            "trainer": [trainer.name, f"{trainer.__module__}.{trainer.__qualname__}", source_digest(trainer)],
            "code_version": trainer.code_version,
            "torch": version("torch"),
            "compute": compute,
            "format": FORMAT,
            "stage1": stage1,
            "data": spec.data.fingerprint,
            "split": spec.data.split_hash,
            # Validation features and the probe's values are stored with a stage 1, so those pixels count, too.
            "pixels": [spec.data.pixels.get("train"), spec.data.pixels.get("val")],
            "image_size": spec.data.image_size,
            "seed": spec.seed,
            **_extra_data(spec),
        }
    )


def _extra_data(spec: RunSpec) -> dict[str, Any]:
    """Further training data, in order; nothing where there is none, so that such stage 1s keep their addresses."""
    extra = spec.data.extra
    if not extra:
        return {}
    pixels = [spec.data.pixels.get(extra_key(number)) for number in range(1, len(extra) + 1)]
    return {"extra_data": [[facts.fingerprint, found] for facts, found in zip(extra, pixels, strict=True)]}


def compute_kind(device: str, threads: int) -> str:
    """What decides the last bits of a result: the kind of device and, on a CPU, the number of threads."""
    return f"{device}:{threads}" if device == "cpu" else device
