"""The cells of the first sheet of an Excel workbook (.xlsx, ECMA-376), as text: enough for a published table of labels.

A workbook is a zip archive of XML. Formulas, dates and formats are not interpreted: a cell is the value stored with it.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from lt_search.data.csv_cells import Cells
from lt_search.errors import Problem, UserError

MAX_BYTES = 1 << 28
"""Parts of a workbook that unpack to more are refused: a damaged or hostile file could fill the memory."""

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_OFFICE_ID = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_RELATION = "{http://schemas.openxmlformats.org/package/2006/relationships}Relationship"


def read_xlsx_cells(table: Path) -> Cells:
    """The cells of the first sheet; its first row with any text is the header.

    Raises:
        UserError: the file cannot be read or is no workbook.
    """
    try:
        with zipfile.ZipFile(table) as archive:
            rows = [
                (number, cells) for number, cells in _rows(archive, _shared(archive)) if any(text for text in cells)
            ]
    except (OSError, zipfile.BadZipFile, zlib.error, LookupError, ValueError, ET.ParseError, RuntimeError) as error:
        what = f"cannot be read as an Excel workbook ({error})"
        raise UserError(Problem(str(table), what, "take the file as published, or save the table as CSV")) from error
    columns = tuple(name.lower() for name in rows[0][1]) if rows else ()
    while columns and not columns[-1]:
        columns = columns[:-1]
    width = len(columns)
    padded = [tuple((cells + [""] * width)[: max(width, len(_trimmed(cells)))]) for _, cells in rows[1:]]
    return Cells(columns, tuple(number for number, _ in rows[1:]), tuple(padded))


def _rows(archive: zipfile.ZipFile, shared: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Each row's number, from 1, and its cells from column A on; cells that are not stored are empty."""
    for place, row in enumerate(_parse(archive, _first_sheet(archive)).iter(f"{_MAIN}row"), 1):
        cells: list[str] = []
        for cell in row.iter(f"{_MAIN}c"):
            column = _column(cell.get("r"), len(cells))
            cells += [""] * (column + 1 - len(cells))
            cells[column] = _text(cell, shared)
        yield int(row.get("r", place)), cells


def _column(reference: str | None, following: int) -> int:
    """The number, from 0, of the column that a reference such as `AB12` names; `following` where there is none."""
    letters = re.match(r"[A-Z]{1,3}", reference or "")
    if letters is None:
        return following
    number = 0
    for letter in letters[0]:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def _text(cell: ET.Element, shared: list[str]) -> str:
    """A cell's value without blanks around it; a whole number without its `.0`."""
    kind, value = cell.get("t", "n"), cell.findtext(f"{_MAIN}v") or ""
    if kind == "s":
        return shared[int(value)].strip() if value else ""
    if kind == "inlineStr":
        return "".join(part.text or "" for part in cell.iter(f"{_MAIN}t")).strip()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", value.strip()) if kind == "n" else value.strip()


def _shared(archive: zipfile.ZipFile) -> list[str]:
    """The strings that cells name by number; phonetic hints are no part of them."""
    name = "xl/sharedStrings.xml"
    if name not in archive.namelist():
        return []
    return [
        "".join(part.text or "" for part in (*item.findall(f"{_MAIN}t"), *item.findall(f"{_MAIN}r/{_MAIN}t")))
        for item in _parse(archive, name).iter(f"{_MAIN}si")
    ]


def _first_sheet(archive: zipfile.ZipFile) -> str:
    """The name, in the archive, of the sheet that the workbook lists first."""
    sheet = next(_parse(archive, "xl/workbook.xml").iter(f"{_MAIN}sheet"), None)
    wanted = None if sheet is None else sheet.get(_OFFICE_ID)
    for relation in _parse(archive, "xl/_rels/workbook.xml.rels").iter(_RELATION):
        if relation.get("Id") == wanted:
            # A target is relative to the workbook, or absolute in the archive.
            return posixpath.normpath(posixpath.join("/xl", relation.get("Target", ""))).lstrip("/")
    raise ValueError("it has no sheet")


def _parse(archive: zipfile.ZipFile, name: str) -> ET.Element:
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise ValueError(f"{name} unpacks to more than {MAX_BYTES >> 20} MiB")
    return ET.fromstring(archive.read(name))


def _trimmed(cells: list[str]) -> list[str]:
    """The cells without empty ones at their end."""
    end = len(cells)
    while end and not cells[end - 1]:
        end -= 1
    return cells[:end]
