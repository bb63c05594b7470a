"""Cells of the first sheet of an Excel workbook (.xlsx) as text."""

from __future__ import annotations

import warnings
import zipfile
from datetime import date, datetime
from pathlib import Path

from lt_search.data.csv_cells import Cells, without_blank_end
from lt_search.errors import Problem, UserError

MAX_BYTES = 1 << 28
"""Workbooks that unpack to more are refused: a damaged or hostile file could fill the memory."""

_ENCRYPTED = bytes.fromhex("d0cf11e0a1b11ae1")
"""Beginning of an OLE file: a workbook behind a password, or one of Excel before 2007."""


def read_xlsx(table: Path) -> Cells:
    """The cells of the first sheet; its first row with any text is the header.

    Raises:
        UserError: the file cannot be read or is not a workbook.
    """
    try:
        rows = _rows(table)
    except Exception as error:  # openpyxl raises whatever its parser meets in a damaged file
        what = f"cannot be read as an Excel workbook ({' '.join(str(error).split())})"
        raise UserError(Problem(str(table), what, "take the file as published, or save the table as CSV")) from error
    numbered = [(number, row) for number, row in enumerate(rows, 1) if any(row)]
    columns = without_blank_end([name.lower() for name in numbered[0][1]], 0) if numbered else ()
    cells = [(number, without_blank_end(row, len(columns))) for number, row in numbered[1:]]
    return Cells(columns, tuple(number for number, _ in cells), tuple(row for _, row in cells))


def _rows(table: Path) -> list[list[str]]:
    """All rows, those without a cell as well."""
    import pandas as pd  # takes long to import

    with table.open("rb") as file:
        if file.read(len(_ENCRYPTED)) == _ENCRYPTED:
            raise ValueError("it is protected by a password, or in the format of Excel before 2007")
    with zipfile.ZipFile(table) as archive:
        if sum(part.file_size for part in archive.infolist()) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES >> 20} MiB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # openpyxl's, on styles and extensions that do not concern the cells
        frame = pd.read_excel(table, header=None, dtype=object, na_filter=False, engine="openpyxl")
    return [[_text(value) for value in row] for row in frame.itertuples(index=False)]


def _text(value: object) -> str:
    """A cell without blanks around it; true and false as 1 and 0, as the file has them."""
    if isinstance(value, bool):
        return str(int(value))
    return value.isoformat() if isinstance(value, date | datetime) else str(value).strip()
