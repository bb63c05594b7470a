"""Metric losses with mining of pairs and triplets, on the (B, B) matrix of a batch's pairs.

Embeddings e (B, d) are of unit length, so that squared Euclidean distances lie in [0, 4]. A pair of one image with
itself, which a batch that repeats an image holds, is neither positive nor negative. Where nothing is selected a loss
is 0 * sum(e): the graph stays valid, and a divergence still shows as NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Selector = Literal["all", "batch_hard", "hardest_neg", "random_hard", "semi_hard"]
CentreNegatives = Literal["all", "worst"]

SMALLEST_SQUARE = 1e-12
"""Squared distances below it have no gradient through their root, which is infinite at 0."""


@dataclass(frozen=True)
class Pairs:
    """Which pairs of a batch are positive (one class, two images), and which negative (two classes): (B, B) each."""

    positive: Tensor
    negative: Tensor

    @classmethod
    def of(cls, labels: Tensor, images: Tensor) -> Pairs:
        """The pairs of class indices (B,) and image indices (B,)."""
        same_class = labels[:, None] == labels
        return cls(same_class & (images[:, None] != images), ~same_class)


class Mined(NamedTuple):
    """A loss with a margin, and how much of the batch still breaks the margin."""

    loss: Tensor
    active: Tensor
    """Share of the candidates that violate the margin, a scalar; 0 without candidates."""


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, (B, M), of x (B, d) and y (M, d)."""
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    return (lengths - 2 * x @ y.mT).clamp(min=0)


def triplet(e: Tensor, pairs: Pairs, margin: float, selector: Selector, draws: torch.Generator) -> Mined:
    """Mean of max(0, |a - p|^2 - |a - n|^2 + m) over the selected triplets (FaceNet, arXiv 1503.03832).

    `all` takes every valid triplet and `batch_hard` each anchor's farthest positive and nearest negative (Hermans et
    al., arXiv 1703.07737), both whether the margin is violated or not. The others take for each anchor-positive pair
    one negative that violates it, or none: `hardest_neg` the worst, `random_hard` any, `semi_hard` any whose violation
    is below m, which is farther than the positive. Candidates are triplets, anchors and anchor-positive pairs.
    `draws` is a generator on the embeddings' device.
    """
    d = squared_distances(e, e)
    if selector == "batch_hard":
        farthest = d.masked_fill(~pairs.positive, -torch.inf).max(1).values
        nearest = d.masked_fill(~pairs.negative, torch.inf).min(1).values
        violation = farthest - nearest + margin
        return _hinge(violation, pairs.positive.any(1) & pairs.negative.any(1), e)
    # One row per anchor-positive pair: of B anchors few pairs are positive, so this is far from (B, B, B).
    anchors = pairs.positive.nonzero()[:, 0]
    violation = d[pairs.positive][:, None] - d.index_select(0, anchors) + margin
    valid = pairs.negative.index_select(0, anchors)
    if selector == "all":
        return _hinge(violation, valid, e)
    eligible = valid & (violation > 0)
    if selector == "semi_hard":
        eligible &= violation < margin
    rank = violation.detach()
    if selector != "hardest_neg":
        rank = torch.rand(violation.shape, generator=draws, device=e.device)
    best = rank.masked_fill(~eligible, -torch.inf).argmax(1, keepdim=True)
    found = eligible.any(1)
    return Mined(_mean(violation.gather(1, best).squeeze(1), found, e), _share(found, valid.any(1)))


def triplet_centre(
    e: Tensor, labels: Tensor, centres: Tensor, present: Tensor, margin: float, negatives: CentreNegatives
) -> Mined:
    """Mean of |e - c_y|^2 - |e - c_k|^2 + m over the other classes k where it is positive, or each image's worst one.

    After the public code Triplet_Center (KHao123), see He et al., arXiv 1803.06189. `centres` (K, d) are constants;
    only classes `present` (K,) have one. Candidates are pairs of an image and another class.
    """
    d = squared_distances(e, centres)
    violation = d.gather(1, labels[:, None]) - d + margin
    own = torch.nn.functional.one_hot(labels, len(centres)).bool()
    candidates = present & ~own
    violated = candidates & (violation > 0)
    active = _share(violated, candidates)
    if negatives == "worst":
        worst = violation.detach().masked_fill(~violated, -torch.inf).argmax(1, keepdim=True)
        violation, violated = violation.gather(1, worst), violated.gather(1, worst)
    return Mined(_mean(violation, violated, e), active)


def contrastive(e: Tensor, pairs: Pairs, margin: float) -> Mined:
    """Half the mean of |a - p|^2 over positive pairs plus half that of max(0, m - |a - n|)^2 over negative ones.

    Hadsell et al. (CVPR 2006). That is what Triplet_Center's mean over all positive and as many random negative pairs
    is on average. Candidates are the negative pairs.
    """
    d = squared_distances(e, e)
    away = d.clamp(min=SMALLEST_SQUARE).sqrt()
    short = (margin - away).clamp(min=0)
    loss = (_mean(d, pairs.positive, e) + _mean(short.square(), pairs.negative, e)) / 2
    return Mined(loss, _share(pairs.negative & (short > 0), pairs.negative))


def n_pair(e: Tensor, pairs: Pairs, draws: torch.Generator) -> Tensor:
    """Mean of log(1 + sum_n exp(<e_i, n> - <e_i, p_i>)) over anchors with a positive (Sohn, NIPS 2016).

    p_i is one positive of the anchor, drawn at random; n are all of its negatives. `draws` is a generator on the
    embeddings' device.
    """
    s = e @ e.mT
    chance = torch.rand(s.shape, generator=draws, device=e.device).masked_fill(~pairs.positive, -torch.inf)
    own = s.gather(1, chance.argmax(1, keepdim=True))
    others = (s - own).masked_fill(~pairs.negative, -torch.inf)
    losses = torch.cat((torch.zeros_like(own), others), 1).logsumexp(1)
    return _mean(losses, pairs.positive.any(1), e)


def supervised_contrastive(e: Tensor, pairs: Pairs, temperature: float) -> Tensor:
    """Mean of -1/|P(i)| sum_p log(exp(<e_i, e_p> / T) / sum_a exp(<e_i, e_a> / T)) over anchors with a positive.

    L_out of Khosla et al. (arXiv 2004.11362); a runs over all other images of the batch.
    """
    logits = e @ e.mT / temperature
    anchors = pairs.positive.any(1)
    # An anchor without a positive, which does not count, may also be without any other image: no empty sums.
    others = pairs.positive | pairs.negative | ~anchors[:, None]
    log_p = logits - logits.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)
    mean = log_p.where(pairs.positive, 0).sum(1) / pairs.positive.sum(1).clamp(min=1)
    return _mean(-mean, anchors, e)


def mean_negative_distance(e: Tensor, pairs: Pairs) -> Tensor:
    """Mean |a - n| over negative pairs, a scalar without gradient; near 0, the embeddings have collapsed."""
    d = squared_distances(e.detach(), e.detach())
    return d.sqrt().where(pairs.negative, 0).sum() / pairs.negative.sum().clamp(min=1)


def _hinge(violation: Tensor, candidates: Tensor, e: Tensor) -> Mined:
    """All candidates, those that violate nothing as zeros."""
    return Mined(_mean(violation.clamp(min=0), candidates, e), _share(candidates & (violation > 0), candidates))


def _mean(values: Tensor, selected: Tensor, e: Tensor) -> Tensor:
    """Mean of the selected values; 0 without any, NaN if an embedding is NaN."""
    return values.where(selected, 0).sum() / selected.sum().clamp(min=1) + 0 * e.sum()


def _share(of: Tensor, among: Tensor) -> Tensor:
    """Number of True in `of` as a fraction of those in `among`."""
    return of.sum() / among.sum().clamp(min=1)
