import zipfile
from pathlib import Path

import pytest

from lt_search.data import xlsx_cells
from lt_search.data.xlsx_cells import read_xlsx_cells
from lt_search.errors import UserError
from tests.helpers.published import write_xlsx

COLUMNS = ("ID", "Left Eye", "", "N", "")
ROWS = [["7", "a\uff0cb & c", "", "1", ""], ["", "", "", "", ""], ["12", "", "x", "0", "behind"]]


def change(path: Path, name: str, old: str, new: str) -> None:
    """Changes one part of a workbook."""
    with zipfile.ZipFile(path) as archive:
        parts = {one: archive.read(one).decode() for one in archive.namelist()}
    assert old in parts[name]
    with zipfile.ZipFile(path, "w") as archive:
        for one, text in parts.items():
            archive.writestr(one, text.replace(old, new) if one == name else text)


def problem_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_xlsx_cells(path)
    return str(caught.value)


def test_cells_of_the_first_sheet_are_at_their_columns_with_their_line_numbers(tmp_path: Path) -> None:
    cells = read_xlsx_cells(write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS))
    assert cells.columns == ("id", "left eye", "", "n")
    assert cells.numbers == (2, 4)
    assert cells.rows[0] == ("7", "a\uff0cb & c", "", "1")
    # A cell behind the last named column stays, so that the row is seen to be too long.
    assert cells.rows[1] == ("12", "", "x", "0", "behind")


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ('<c r="A2"><v>7.0</v></c>', "7"),
        ('<c r="A2" t="n"><v>-0.25</v></c>', "-0.25"),
        ('<c r="A2" t="str"><f>B2</f><v> 7.0 </v></c>', "7.0"),
        ('<c r="A2" t="inlineStr"><is><r><t>se</t></r><r><t>ven</t></r></is></c>', "seven"),
        ("<c><v>7</v></c>", "7"),
    ],
)
def test_every_way_to_store_a_value_is_read(tmp_path: Path, stored: str, read: str) -> None:
    path = write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS)
    change(path, "xl/worksheets/sheet2.xml", '<c r="A2"><v>7</v></c>', stored)
    assert read_xlsx_cells(path).column("id")[0] == read


def test_rich_text_is_joined_without_phonetic_hints(tmp_path: Path) -> None:
    path = write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS)
    rich = "<r><t>a\uff0c</t></r><r><t>b</t></r><rPh><t>hint</t></rPh>"
    change(path, "xl/sharedStrings.xml", "<t>a\uff0cb &amp; c</t>", rich)
    assert read_xlsx_cells(path).column("left eye")[0] == "a\uff0cb"


class TestMistakes:
    def test_files_that_are_no_workbook(self, tmp_path: Path) -> None:
        path = tmp_path / "a.xlsx"
        path.write_text("ID,N\n1,1\n")
        assert f"{path}: cannot be read as an Excel workbook" in problem_of(path)
        assert "save the table as CSV" in problem_of(path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "no workbook")
        assert "xl/workbook.xml" in problem_of(path)

    def test_damaged_parts(self, tmp_path: Path) -> None:
        path = write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS)
        path.write_bytes(path.read_bytes()[:-200])
        assert "cannot be read as an Excel workbook" in problem_of(path)
        write_xlsx(path, COLUMNS, ROWS)
        change(path, "xl/worksheets/sheet2.xml", "</row>", "")
        assert "cannot be read as an Excel workbook" in problem_of(path)

    def test_a_part_that_would_fill_the_memory_is_not_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS)
        monkeypatch.setattr(xlsx_cells, "MAX_BYTES", 100)
        assert "unpacks to more than" in problem_of(path)
