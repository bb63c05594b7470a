"""Config fields of the multi-label losses that several trainers offer, see `trainers.losses.sigmoid`."""

from __future__ import annotations

from pydantic import Field

from trainers.base import Stage1Config


class SigmoidLossFields(Stage1Config):
    """Constants of ASL, RAL and DB. Defaults are their papers' values, or their released code's."""

    gamma_pos: float = Field(1.0, ge=0, le=10)
    """gamma+ of the asymmetric loss, ASL."""
    gamma_neg: float = Field(4.0, ge=0, le=10)
    """gamma- of ASL and RAL; too strong on mild imbalance, where 2 or less is advised."""
    asl_margin: float = Field(0.05, ge=0, lt=1)
    """Probability margin m of ASL and RAL."""
    ral_gamma_pos: float = Field(0.0, ge=0, le=10)
    """gamma+ of the robust asymmetric loss, RAL."""
    ral_hill: float | None = Field(1.5, ge=1, le=10)
    """L of RAL's Hill factor on negatives, (L - p) p^2 (L - 1 + p_m); None leaves it out."""
    ral_linear: float = Field(1.0, ge=-10, le=10)
    """e1 of RAL's polynomial, which takes e1 (1 - p) + e2 / 2 (1 - p)^2 from a positive's -log p."""
    ral_quadratic: float = Field(-2.5, ge=-20, le=20)
    """e2 of RAL."""
    db_centre: float = Field(0.2, ge=0, le=1)
    """mu of the distribution-balanced loss's (DB's) weights, 0.1 + sigmoid(10 (rho - mu)); paper 0.2 on COCO, 0.3 on
    VOC."""
    db_scale: float = Field(2.0, ge=1, le=100)
    """L of DB, which tolerates negatives; paper 2 on COCO, 5 on VOC."""
    db_kappa: float = Field(0.05, ge=0, le=10)
    """kappa of DB: shift of logits by the log odds of a label, over L."""
