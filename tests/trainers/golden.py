"""Golden stage-1 outputs: summaries of small stage-1 runs of the built-in trainers, recorded per `code_version`.

A stage-1 artefact is addressed by its trainer's `code_version` and by the fields that differ from their defaults, so a
change of what stage 1 gives, a changed default included, must raise the version. Where a summary no longer fits the
record, that was forgotten. After raising it, and after adding a field or an option, write the record anew:

    python -m tests.trainers.golden
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from pydantic.fields import FieldInfo
from torch import Tensor

from trainers.base import Resource, Task, TrainerInputs, TwoStageTrainer
from trainers.registry import BUILT_IN, find_trainer

RECORD = Path(__file__).with_name("golden_outputs.json")
COMMAND = "python -m tests.trainers.golden"

RTOL, RTOL_PROBE, ATOL = 3e-3, 5e-2, 1e-5
"""Above what the rounding of another processor or PyTorch build makes of a few steps. The probe's discriminants, of 20
images in up to 32 dimensions, amplify it."""

SIDE, N_TRAIN, N_TEST, N_CLASSES = 16, 20, 6, 4

SMALL = {"backbone": "conv4", "weights": "none", "epochs": 2, "batch_size": 8}
"""Fields that make a run of any trainer small; these are not varied."""
SMALL_BY_TRAINER: dict[str, dict[str, Any]] = {
    "cxr": {"d_model": 16, "ffn": 16, "layers": 1, "lr": 1e-3},
    "ldrnet": {"ffn": 16, "lr": 1e-3},
    "metric": {"embedding_dim": 8, "classes_per_batch": 3, "images_per_class": 3, "lr": 1e-3},
}
"""Further ones, and learning rates at which a few steps matter, but do not amplify rounding."""

COMBINED: dict[str, list[dict[str, Any]]] = {
    "cxr": [{"label_embeddings": "labels.safetensors"}, {"ema_decay": 0.9, "warmup": 0.0}],
    "decoupled": [{"loss": "distribution_balanced", "sampling_exponent": 0.0}],
    "ldrnet": [{"d_model": 16}, {"prompt": "tokens.safetensors"}],
    "metric": [{"metric": "triplet_center", "center_negatives": "worst"}, {"metric": "none", "head_input": "e"}],
}
"""Variations beside those of `_options`."""

Trainer = TwoStageTrainer[Any]


def measure(trainer: type[Trainer], recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record of a trainer.

    Its `code_version`, the defaults of stage 1, a summary of each variation, and the variations `unused`: invalid ones,
    and those that give what the default gives. The ones that are `recorded` as such are not run again.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    outputs: dict[str, Any] = {}
    unused: list[str] = []
    try:
        for task in sorted(trainer.tasks):
            for changed in _variations(trainer):
                name = ", ".join([task, *(f"{field}={value}" for field, value in changed.items())])
                summary = None
                if recorded is None or name not in recorded["unused"]:
                    with suppress(ValueError):  # an option that another field, or the task, rules out
                        summary = _summary(trainer, task, changed)
                if summary is None or summary == outputs.get(task):
                    unused.append(name)
                else:
                    outputs[name] = summary
    finally:
        torch.set_num_threads(threads)
    defaults = trainer.config_type().model_dump(mode="json")["stage1"]
    return {"code_version": trainer.code_version, "defaults": defaults, "unused": unused, "outputs": outputs}


def changes(recorded: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """Differences for which `code_version` must be raised: other defaults, and other outputs of the same variation."""
    defaults, outputs = measured["defaults"], measured["outputs"]
    found = [
        f"the default of stage1.{field} is {defaults[field]!r}, and was {old!r}"
        for field, old in recorded["defaults"].items()
        if field in defaults and defaults[field] != old
    ]
    for name, summary in recorded["outputs"].items():
        new = outputs.get(name, summary)
        parts = [part for part, old in summary.items() if not _close(part, old, new.get(part))]
        if parts:
            found.append(f"{name}: {', '.join(parts)} differ")
    return found


def incomplete(recorded: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """Fields and variations that are in one of the two only."""
    before, now = ({*record["defaults"], *record["unused"], *record["outputs"]} for record in (recorded, measured))
    return sorted(before ^ now)


def read() -> dict[str, Any]:
    """The record of each trainer by its name."""
    return dict(json.loads(RECORD.read_text())) if RECORD.exists() else {}


def must_be_raised(recorded: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """For each trainer whose outputs changed under the same `code_version`, what to do and the changes."""
    return [
        f"raise code_version of {name} (now {new['code_version']}), then run {COMMAND}:\n  " + "\n  ".join(found)
        for name, new in measured.items()
        if name in recorded and new["code_version"] <= recorded[name]["code_version"]
        if (found := changes(recorded[name], new))
    ]


def main() -> int:
    """Writes the record; refuses, with exit code 1, where a `code_version` must be raised first."""
    measured = {name: measure(find_trainer(name)) for name in sorted(BUILT_IN)}
    if refused := must_be_raised(read(), measured):
        print(*refused, sep="\n", file=sys.stderr)
        return 1
    RECORD.write_text(_formatted(measured))
    return 0


def _formatted(measured: Mapping[str, Any]) -> str:
    """JSON with one line per variation."""
    trainers = []
    for name, record in measured.items():
        outputs = ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in record["outputs"].items())
        head = f'  "code_version": {record["code_version"]},\n  "defaults": {json.dumps(record["defaults"])},\n'
        head += f'  "unused": {json.dumps(record["unused"])},\n'
        trainers.append(f' "{name}": {{\n{head}  "outputs": {{\n{outputs}\n  }}\n }}')
    return "{\n" + ",\n".join(trainers) + "\n}\n"


def _close(part: str, old: list[float], new: list[float] | None) -> bool:
    if new is None or len(new) != len(old):
        return False
    return np.allclose(new, old, rtol=RTOL_PROBE if part == "probe" else RTOL, atol=ATOL, equal_nan=True)


def _variations(trainer: type[Trainer]) -> list[dict[str, Any]]:
    """The default, and each option of each field beside the defaults of all others."""
    fields = type(trainer.config_type().stage1).model_fields
    fixed = SMALL | SMALL_BY_TRAINER.get(trainer.name, {})
    single = [{name: option} for name, field in fields.items() if name not in fixed for option in _options(field)]
    return [{}, *single, *COMBINED.get(trainer.name, [])]


def _options(field: FieldInfo) -> Iterator[Any]:
    """Other values that switch what a field is for: all choices, on or off, and a number that is 0 or may be 0."""
    default, kinds = field.default, _kinds(field.annotation)
    yield from (choice for choice in kinds if isinstance(choice, bool | str) and choice != default)
    if type(None) in kinds and default is not None:
        yield None
    elif default is None and int in kinds:
        yield 7
    elif isinstance(default, int | float) and not isinstance(default, bool):
        bounds = {type(bound).__name__: getattr(bound, type(bound).__name__.lower()) for bound in field.metadata}
        if default == 0:
            yield min(1.0, bounds.get("Le", bounds.get("Lt", 2.0)) / 2)
        elif bounds.get("Ge") == 0:
            yield type(default)(0)


def _kinds(annotation: Any) -> list[Any]:
    """The types and literal choices of an annotation."""
    if annotation is bool:
        return [True, False]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [kind for part in get_args(annotation) for kind in _kinds(part)] or [annotation]


def _summary(trainer: type[Trainer], task: Task, changed: Mapping[str, Any]) -> dict[str, list[float]]:
    """Statistics of a finished stage 1: logged scalars of its steps, its state, and what it gives on further images."""
    stage1 = SMALL | SMALL_BY_TRAINER.get(trainer.name, {}) | changed
    config = trainer.config_type.model_validate({"stage1": stage1})
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (N_TRAIN + N_TEST, 3, SIDE, SIDE)).astype(np.uint8)
    classes = np.array([0] * 9 + [1] * 6 + [2] * 3 + [3] * 2)
    for k in range(N_CLASSES):
        images[:N_TRAIN][classes == k, k % 3, 4 * k : 4 * k + 6] //= 4
    labels = torch.from_numpy(classes)
    if task == Task.MULTI_LABEL:
        labels = (
            torch.nn.functional.one_hot(labels, N_CLASSES)
            .float()
            .maximum(torch.from_numpy(draws.random((N_TRAIN, N_CLASSES)) < 0.2))
        )
        if trainer.takes_unknown_labels:
            labels[::6, 0] = torch.nan
    run = trainer(
        config,
        TrainerInputs(
            task,
            N_CLASSES,
            images[:N_TRAIN],
            labels,
            torch.device("cpu"),
            seed=0,
            resources={resource.key: _tensors(resource) for resource in config.resources()},
            groups=[f"patient {i // 2}" for i in range(N_TRAIN)],
        ),
    )
    summary = {"initial weights": _statistics(run.state()["model"])}
    for step in range(config.stage1.epochs):
        scalars = run.stage1_step(step)
        summary[f"step {step}"] = [_rounded(scalars[name]) for name in sorted(scalars)]
    further = images[N_TRAIN:]
    summary["features"] = _statistics(run.features(further))
    summary["logits"] = _statistics(run.predict_logits(further))
    summary["probe"] = _statistics(run.probe_logits(further))
    return summary | {f"state {part}": _statistics(value) for part, value in run.finished_stage1().items()}


def _tensors(resource: Resource) -> dict[str, Tensor]:
    rows = torch.arange(N_CLASSES * 5, dtype=torch.float32).view(N_CLASSES, 5)
    return {resource.name: rows.sin()}


def _statistics(value: Any) -> list[float]:
    """Number, root mean square, and weighted mean over it, of all numbers in nested tensors."""
    parts = list(_flat(value))
    if not parts:
        return []
    x = torch.cat(parts)
    weights = torch.arange(len(x), dtype=torch.float64).mul(0.7).cos() + 1
    scale = x.square().mean().sqrt()
    return [len(x), _rounded(scale.item()), _rounded(((x * weights).mean() / scale.clamp(min=1e-12)).item())]


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _flat(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, Tensor | int | float):
        yield torch.as_tensor(value, dtype=torch.float64).flatten()


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


if __name__ == "__main__":
    raise SystemExit(main())
