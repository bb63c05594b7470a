"""How much each stage matters, read off a table of values with a row per stage 1 and a column per stage 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lt_search.parzen import Array
from lt_search.stage_history import Index

PRIOR_TRIALS = 4.0
"""Values that the prior of a variance counts for."""

PRIOR_SHARES = (0.4, 0.4, 0.2)
"""The prior shares of the variance: of stage 1, of stage 2, and of what is neither, interaction and noise."""

ROW_SHRINKAGE, COLUMN_SHRINKAGE = 0.5, 1.0
"""Values of 0 added to each row's and column's. Columns get more: most have one value, the best of them by luck."""

SWEEPS = 20
"""Of the alternating fit; more of them change nothing that matters."""


@dataclass(frozen=True)
class Effects:
    """The additive fit, value = mean + row + column + rest, and the variance of each."""

    mean: float
    rows: Array
    columns: Array
    row_variance: float
    column_variance: float
    rest_variance: float

    @property
    def within_variance(self) -> float:
        """Variance of the values of one stage 1."""
        return self.column_variance + self.rest_variance

    @property
    def interaction(self) -> float:
        """Share, 0 to 1, of a stage 1's variance that is not common to all of them; noise counts as such."""
        return self.rest_variance / self.within_variance if self.within_variance > 0 else 0.0


def fit_effects(values: Array, rows: Index, columns: Index, n_rows: int, n_columns: int) -> Effects:
    """Fits a table of which few cells are known: alternating means, shrunk towards 0.

    The stage 2s that are tried on several stage 1s tie the rows together.

    Args:
        values: of the known cells (n,), finite; n >= 1.
        rows: row of each (n,).
        columns: column of each (n,).
        n_rows: rows in all.
        n_columns: columns in all. A row or column without a value has the effect 0.
    """
    mean = float(values.mean())
    centred = values - mean
    of_rows, of_columns = np.bincount(rows, minlength=n_rows), np.bincount(columns, minlength=n_columns)
    row, column = np.zeros(n_rows), np.zeros(n_columns)
    for _ in range(SWEEPS):
        row = np.bincount(rows, centred - column[columns], n_rows) / (of_rows + ROW_SHRINKAGE)
        column = np.bincount(columns, centred - row[rows], n_columns) / (of_columns + COLUMN_SHRINKAGE)
    rest = centred - row[rows] - column[columns]
    known_rows, known_columns = int((of_rows > 0).sum()), int((of_columns > 0).sum())
    freedom = (known_rows, known_columns, max(len(values) - known_rows - known_columns + 1, 0))
    variances = [
        (float(np.square(effect).sum()) + PRIOR_TRIALS * share * float(centred.var())) / (count + PRIOR_TRIALS)
        for effect, share, count in zip((row, column, rest), PRIOR_SHARES, freedom, strict=True)
    ]
    return Effects(mean, row, column, *variances)
