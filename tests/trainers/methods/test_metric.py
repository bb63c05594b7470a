"""Metric learning in two stages: what each step trains on and by which loss, and what stage 2 makes of it."""

from __future__ import annotations

import logging
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch.nn import functional as F

from tests.helpers.trainers import TINY, N, labels_for, pictures, train
from trainers.base import Images, Task, TrainerInputs
from trainers.images import batches
from trainers.images.augment import evaluation_images
from trainers.methods.metric import MetricConfig, MetricStage1, MetricTrainer

Array = NDArray[Any]

IMAGES = pictures(9, seed=4)
LABELS = labels_for(Task.MULTI_CLASS)
COUNTS = np.bincount(LABELS)
P, S = 3, 4


def metric(
    labels: torch.Tensor = LABELS,
    stage2: dict[str, Any] | None = None,
    images: Images | None = None,
    **stage1: Any,
) -> MetricTrainer:
    config = {"stage1": TINY["metric"]["stage1"] | stage1, "stage2": TINY["metric"]["stage2"] | (stage2 or {})}
    inputs = TrainerInputs(
        Task.MULTI_CLASS, 4, pictures(N) if images is None else images, labels, torch.device("cpu"), 0
    )
    return MetricTrainer(MetricConfig.model_validate(config), inputs)


def trained(stage2: dict[str, Any] | None = None, **stage1: Any) -> MetricTrainer:
    trainer = metric(stage2=stage2, **stage1)
    train(trainer, 1, range(2))
    return trainer


def embeddings(trainer: MetricTrainer) -> Array:
    """e of the training images from h and the embedding's weights."""
    model = trainer.state()["model"]
    h = trainer.features(trainer.inputs.images)
    return np.asarray(F.normalize(h @ model["embedding.weight"].T + model["embedding.bias"]))


class Batch:
    """The first batch of a step of an untrained trainer, its loss, and what it is made of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int = 0, **stage1: Any) -> None:
        trainer = metric(**{"augmentation": "none", "crop": 1.0, **stage1})
        seen: dict[str, Any] = {}
        monkeypatch.setattr(trainer, "train_on_images", lambda *_args, **named: seen.update(named) or 0.0)
        trainer.stage1_step(step)
        self.all = batches.split(seen["order"], seen["batch_size"])
        self.index = torch.from_numpy(self.all[0])
        raw = torch.from_numpy(trainer.inputs.images[self.all[0]])
        self.loss = seen["loss_of"](self.index, raw).item()
        self.labels = LABELS[self.index].numpy()
        with torch.no_grad():  # in training mode, as the step: batch norms see the whole batch
            h = trainer.forward(evaluation_images(raw, 1.0))
            self.logits = trainer.model.head(h).numpy()
            self.e = trainer.model.embedding_of(h).numpy() if trainer.config.stage1.embeds else np.empty(0)
        self.trainer = trainer


def cross_entropy(logits: Array, y: Array) -> Array:
    return np.asarray(-log_softmax(logits.astype(float), 1)[np.arange(len(y)), y])


def reference_metric(batch: Batch, part: slice, name: str) -> float:
    """L_metric of a part of a batch, by loops; margins 0.5, T 0.1, triplets batch_hard."""
    e, y, image = batch.e[part].astype(float), batch.labels[part], batch.index[part].numpy()
    d = ((e[:, None] - e) ** 2).sum(-1)
    rows = range(len(y))
    positive = [[j for j in rows if y[j] == y[i] and image[j] != image[i]] for i in rows]
    negative = [[j for j in rows if y[j] != y[i]] for i in rows]
    anchors = [i for i in rows if positive[i]]
    if name == "triplet":
        return float(np.mean([max(0, max(d[i][positive[i]]) - min(d[i][negative[i]]) + 0.5) for i in anchors]))
    if name == "contrastive":
        pull = [d[i][j] for i in rows for j in positive[i]]
        push = [max(0, 0.5 - d[i][j] ** 0.5) ** 2 for i in rows for j in negative[i]]
        return float(np.mean(pull) + np.mean(push)) / 2
    s = np.exp(e @ e.T / 0.1)
    return float(
        np.mean([-np.mean(np.log(s[i][positive[i]] / s[i][positive[i] + negative[i]].sum())) for i in anchors])
    )


@pytest.mark.parametrize("head_input", ["h", "e"])
@pytest.mark.parametrize("name", ["triplet", "contrastive", "supcon"])
def test_a_step_descends_on_classification_plus_lambda_metric(
    name: str, head_input: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(monkeypatch, metric=name, selector="batch_hard", metric_weight=0.7, head_input=head_input)
    natural, own = slice(0, 8), slice(8, None)
    expected = cross_entropy(batch.logits[natural], batch.labels[natural]).mean()
    assert batch.loss == pytest.approx(expected + 0.7 * reference_metric(batch, own, name), rel=1e-4)


def test_each_step_has_a_natural_batch_and_one_of_classes_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(monkeypatch)
    assert [len(part) for part in batch.all] == [8 + P * S, 8 + P * S, 1 + P * S]  # 17 images in batches of 8
    natural = np.concatenate([part[: -P * S] for part in batch.all])
    np.testing.assert_array_equal(natural, batches.step_order(N, 17, 0, 1, 0))
    for part in batch.all:
        own = LABELS[part[-P * S :]].view(P, S)
        assert (own == own[:, :1]).all()
        assert len(own[:, 0].unique()) == P


def test_without_a_metric_only_natural_batches_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(monkeypatch, metric="none")
    np.testing.assert_array_equal(np.concatenate(batch.all), batches.step_order(N, 17, 0, 1, 0))
    assert batch.loss == pytest.approx(cross_entropy(batch.logits, batch.labels).mean(), rel=1e-5)


@pytest.mark.parametrize("name", ["contrastive", "none"])
def test_one_loader_takes_the_prior_out_of_the_classification(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(monkeypatch, metric=name, loaders="one")
    assert [len(part) for part in batch.all] == [P * S, P * S]  # 17 images or a few more
    expected = cross_entropy(batch.logits - np.log(COUNTS / N), batch.labels).mean()
    if name != "none":
        expected += reference_metric(batch, slice(None), name)
    assert batch.loss == pytest.approx(expected, rel=1e-4)


def test_metric_only_leaves_the_classification_out(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(monkeypatch, metric="supcon", mode="metric_only", warm_up=1.0)
    assert batch.loss == pytest.approx(reference_metric(batch, slice(None), "supcon"), rel=1e-4)
    trainer = metric(mode="metric_only")
    before = trainer.state()["model"]
    train(trainer, 1, range(1))
    after = trainer.state()["model"]
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert "embedding.weight" in changed
    assert not any(key.startswith("head") for key in changed)


def test_class_weights_are_effective_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(monkeypatch, metric="none", class_weights="effective", class_beta=0.9)
    weights = (0.1 / (1 - 0.9**COUNTS))[batch.labels]
    expected = (weights * cross_entropy(batch.logits, batch.labels)).sum() / weights.sum()
    assert batch.loss == pytest.approx(expected, rel=1e-5)


def test_triplet_centres_are_means_of_the_evaluated_training_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(metric="triplet_center")
    e = embeddings(trainer)
    expected = [e[LABELS.numpy() == k].mean(0) for k in range(4)]
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(trainer, "_metric", lambda e, _index, centres, *_rest: seen.append(centres) or 0 * e.sum())
    train(trainer, 1, range(2, 3))
    np.testing.assert_allclose(seen[0], expected, atol=1e-5)
    assert all(torch.equal(seen[0], other) for other in seen)


def test_lambda_grows_from_zero_over_its_warm_up() -> None:
    cfg = MetricStage1(epochs=20, warm_up=0.2, metric_weight=3.0)
    np.testing.assert_allclose([cfg.lambda_at(step) for step in range(6)], [0, 0.75, 1.5, 2.25, 3, 3])
    assert MetricStage1(epochs=20, metric_weight=3.0).lambda_at(0) == 3
    late = metric(epochs=20, warm_up=0.2, images_per_epoch=None).config
    assert late.losses_active_from() == {1: 4, 2: 0}
    assert metric(epochs=20, warm_up=0.2, metric="none").config.losses_active_from() == {1: 0, 2: 0}


@pytest.mark.parametrize(("schedule", "rates"), [
    ("step", [1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1]), ("constant", [1] * 10),
    ("cosine", (1 + np.cos(np.pi * np.arange(10) / 10)) / 2),
])  # fmt: skip
def test_the_rate_follows_its_schedule(schedule: Any, rates: Any) -> None:
    cfg = MetricStage1(epochs=10, lr=0.02, lr_schedule=schedule)
    np.testing.assert_allclose([cfg.lr_at(step) for step in range(10)], 0.02 * np.asarray(rates))
    trainer = metric(epochs=4, lr=0.02, lr_schedule=schedule)
    train(trainer, 1, range(3))
    assert trainer.optimizers["stage1"].param_groups[0]["lr"] == trainer.config.stage1.lr_at(2)


@pytest.mark.parametrize("name", ["triplet", "triplet_center", "npair", "supcon", "contrastive"])
def test_every_metric_brings_images_of_a_class_together_and_of_others_apart(name: str) -> None:
    def contrast(trainer: MetricTrainer) -> float:
        e, y = embeddings(trainer), LABELS.numpy()
        d = ((e[:, None] - e) ** 2).sum(-1)
        same = y[:, None] == y
        return float(d[~same].mean() / d[same].mean())

    bright = (pictures(N) // 4 + 48 * LABELS.numpy()[:, None, None, None]).astype(np.uint8)
    trainer = metric(images=bright, metric=name, mode="metric_only", images_per_epoch=N, lr=1e-3)
    before = contrast(trainer)
    logged = train(trainer, 1, range(4))
    assert contrast(trainer) > 2 * before
    assert all(("active" in step) is (name not in ("npair", "supcon")) for step in logged)


def test_collapsed_embeddings_are_said(caplog: pytest.LogCaptureFixture) -> None:
    trainer = metric()
    state = trainer.state()
    state["model"]["embedding.weight"].zero_()
    trainer.load_state(state)
    with caplog.at_level(logging.WARNING):
        trainer.stage1_step(0)
    assert "warm_up" in caplog.text


def test_classes_that_cannot_fill_a_batch_are_said() -> None:
    counts = {"nevus": 90, "melanoma": 4, "lentigo": 3, "angioma": 1, "none yet": 0}
    (note,) = metric().config.notes(counts)
    assert "lentigo (3), angioma (1)" in note
    assert "melanoma" not in note
    assert "none yet" not in note
    assert metric(metric="none").config.notes(counts) == ()
    assert metric(images_per_class=2).config.notes({"nevus": 90, "melanoma": 4}) == ()


@pytest.mark.parametrize("name", get_args(MetricStage1.model_fields["metric"].annotation))
def test_classes_of_fewer_images_than_a_batch_takes_train_on(name: str) -> None:
    labels = torch.tensor([0] * 30 + [1] * 8 + [2] * 2 + [3])
    trainer = metric(labels, metric=name, images_per_class=10, classes_per_batch=4)
    losses = train(trainer, 1, range(3))
    assert all(np.isfinite(value) for step in losses for value in step.values())
    assert all(step["loss"] > 0 for step in losses)


@pytest.mark.parametrize(("stage1", "stage2", "message"), [
    ({"mode": "metric_only", "metric": "none"}, {}, "needs a metric"),
    ({"mode": "metric_only"}, {"method": "tau_norm"}, "trains no head"),
    ({"mode": "metric_only"}, {"method": "crt", "head_init": "stage1"}, "trains no head"),
    ({"loaders": "one", "class_weights": "effective"}, {}, "natural batches"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(stage1: dict[str, Any], stage2: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(stage2=stage2, **stage1)


@pytest.mark.parametrize("method", ["none", "crt", "reweight", "balsoft", "lws", "tau_norm", "ncm"])
def test_stage_two_never_moves_the_extractor(method: str) -> None:
    trainer = trained({"method": method})
    before = trainer.state()["model"]
    trainer.begin_stage2()
    train(trainer, 2, range(3))
    after = trainer.state()["model"]
    assert all(torch.equal(before[key], after[key]) for key in after if not key.startswith("head"))
    stage1 = trained()
    assert torch.equal(trainer.predict_logits(IMAGES), stage1.predict_logits(IMAGES)) is (method == "none")


@pytest.mark.parametrize(("method", "expected"), [
    ("crt", lambda z, y: cross_entropy(z, y).mean()),
    ("balsoft", lambda z, y: cross_entropy(z + np.log(COUNTS), y).mean()),
    ("reweight", lambda z, y: np.average(cross_entropy(z, y), weights=(0.1 / (1 - 0.9**COUNTS))[y])),
])  # fmt: skip
def test_a_new_head_learns_by_the_methods_equation(method: str, expected: Any) -> None:
    trainer = trained({"method": method, "beta": 0.9})
    trainer.begin_stage2()
    z = np.random.default_rng(0).normal(size=(7, 4))
    y = np.array([0, 1, 2, 3, 0, 0, 3])
    found = trainer._head_loss()(torch.from_numpy(z), torch.from_numpy(y)).item()
    assert found == pytest.approx(expected(z, y), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "balanced"), [("crt", True), ("lws", True), ("reweight", False), ("balsoft", False)]
)
def test_features_are_drawn_as_the_method_samples(method: str, balanced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained({"method": method, "rounds": 100})
    trainer.begin_stage2()
    targets: list[torch.Tensor] = []
    monkeypatch.setattr(trainer, "train_on_features", lambda drawn, **_: targets.extend(y for _, y in drawn) or 0.0)
    train(trainer, 2, range(100))
    share = np.bincount(torch.cat(targets)) / (100 * N)
    np.testing.assert_allclose(share, [0.25] * 4 if balanced else COUNTS / N, atol=0.03 if balanced else 1e-9)


@pytest.mark.parametrize("head_init", ["reinit", "stage1"])
def test_a_head_starts_anew_or_where_stage_one_left_it(head_init: str) -> None:
    trainer = trained({"method": "balsoft", "head_init": head_init})
    before = trainer.predict_logits(IMAGES)
    trainer.begin_stage2()
    assert torch.equal(trainer.predict_logits(IMAGES), before) is (head_init == "stage1")


@pytest.mark.parametrize("head_input", ["h", "e"])
def test_the_nearest_mean_is_one_of_embeddings(head_input: str) -> None:
    trainer = trained({"method": "ncm"}, head_input=head_input)
    e = np.asarray(trainer.features(trainer.inputs.images)) if head_input == "e" else embeddings(trainer)
    np.testing.assert_allclose(np.linalg.norm(e, axis=1), 1, rtol=1e-5)
    means = np.stack([e[LABELS.numpy() == k].mean(0) for k in range(4)])
    trainer.begin_stage2()
    expected = e @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    np.testing.assert_allclose(trainer.predict_logits(trainer.inputs.images), expected, atol=1e-5)


def test_without_an_embedding_the_nearest_mean_is_one_of_pooled_features() -> None:
    trainer = trained({"method": "ncm"}, metric="none")
    h = trainer.features(trainer.inputs.images)
    means = torch.stack([h[trainer.labels == k].mean(0) for k in range(4)])
    trainer.begin_stage2()
    expected = F.normalize(h) @ F.normalize(means).T
    torch.testing.assert_close(trainer.predict_logits(trainer.inputs.images), expected, rtol=1e-4, atol=1e-5)


def test_the_head_reads_rectified_embeddings_where_it_reads_embeddings() -> None:
    trainer = trained(head_input="e")
    model = trainer.state()["model"]
    e = trainer.features(IMAGES)
    assert e.shape == (9, 8)
    torch.testing.assert_close(
        trainer.predict_logits(IMAGES), e.clamp(min=0) @ model["head.weight"].T + model["head.bias"]
    )


@pytest.mark.parametrize(
    ("method", "head_input", "kept"), [("crt", "h", False), ("ncm", "h", True), ("crt", "e", True)]
)
def test_an_export_keeps_the_embedding_only_where_it_is_read(method: str, head_input: str, kept: bool) -> None:
    trainer = trained({"method": method}, head_input=head_input)
    trainer.begin_stage2()
    assert ("embedding.weight" in trainer.state()["model"]) is kept


def test_a_stage_one_can_be_loaded_into_a_trainer_that_was_beyond_it() -> None:
    trainer, other = trained({"method": "ncm"}), trained({"method": "ncm"})
    state = trainer.state()
    other.begin_stage2()
    other.load_state(state)
    assert torch.equal(other.predict_logits(IMAGES), trainer.predict_logits(IMAGES))
    assert other.stage1_step(2) == trainer.stage1_step(2)


@pytest.mark.parametrize("method", ["crt", "balsoft"])
def test_batch_norms_move_in_stage_two_only_where_asked(method: str) -> None:
    trainer = trained({"method": method, "bn_update": True})
    trainer.begin_stage2()
    before = trainer.state()["model"]
    train(trainer, 2, range(1))
    after = trainer.state()["model"]
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert {"head.weight", "head.bias"} < changed
    moved = {key for key in changed if not key.startswith("head")}
    assert moved
    assert all("running" in key or "num_batches" in key for key in moved)
