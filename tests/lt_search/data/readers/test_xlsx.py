import warnings
import zipfile
from datetime import datetime
from pathlib import Path

import pytest

from lt_search.data.readers import xlsx
from lt_search.data.readers.xlsx import read_xlsx
from lt_search.errors import UserError
from tests.helpers.published import write_xlsx

COLUMNS = ("ID", "Left Eye", "", "N", "")
ROWS = [["7", "a\uff0cb & c", "", "1", ""], ["", "", "", "", ""], ["12", "", "x", "0", "behind"]]
SHEET = "xl/worksheets/sheet2.xml"


def change(path: Path, name: str, old: str, new: str) -> Path:
    """Changes one part of a workbook."""
    with zipfile.ZipFile(path) as archive:
        parts = {one: archive.read(one).decode() for one in archive.namelist()}
    assert old in parts[name]
    with zipfile.ZipFile(path, "w") as archive:
        for one, text in parts.items():
            archive.writestr(one, text.replace(old, new) if one == name else text)
    return path


def problem_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_xlsx(path)
    return str(caught.value)


def test_cells_of_the_first_sheet_are_at_their_columns_with_their_line_numbers(tmp_path: Path) -> None:
    cells = read_xlsx(write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS))
    assert cells.columns == ("id", "left eye", "", "n")
    assert cells.numbers == (2, 4)
    assert cells.rows[0] == ("7", "a\uff0cb & c", "", "1")
    # A cell behind the last named column stays, so that the row is seen to be too long.
    assert cells.rows[1] == ("12", "", "x", "0", "behind")


def test_rows_that_are_not_stored_count_as_lines(tmp_path: Path) -> None:
    path = change(write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS), SHEET, '<row r="3"></row>', "")
    assert read_xlsx(path).numbers == (2, 4)


def test_blank_rows_above_the_header_are_counted_and_an_empty_sheet_has_no_cells(tmp_path: Path) -> None:
    cells = read_xlsx(write_xlsx(tmp_path / "a.xlsx", ["", ""], [["", ""], ["ID", "N"], ["7", "1"]]))
    assert (cells.columns, cells.numbers, cells.rows) == (("id", "n"), (4,), (("7", "1"),))
    empty = read_xlsx(write_xlsx(tmp_path / "b.xlsx", [""], []))
    assert (empty.columns, empty.rows) == ((), ())


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ('<c r="A2"><v>7.0</v></c>', "7"),
        ('<c r="A2" t="n"><v>-0.25</v></c>', "-0.25"),
        ('<c r="A2"><v>1000000000000</v></c>', "1000000000000"),
        ('<c r="A2" t="str"><f>B2</f><v> 7.0 </v></c>', "7.0"),
        ('<c r="A2" t="inlineStr"><is><r><t>se</t></r><r><t>ven</t></r></is></c>', "seven"),
        ('<c r="A2" t="inlineStr"><is><t>NA</t></is></c>', "NA"),
        ('<c r="A2" t="b"><v>1</v></c>', "1"),
        ('<c r="A2" t="b"><v>0</v></c>', "0"),
        ('<c r="A2" t="d"><v>2019-03-04T00:00:00</v></c>', datetime(2019, 3, 4).isoformat()),
        ('<c r="A2"/>', ""),
        ("<c><v>7</v></c>", "7"),
    ],
)
def test_every_way_to_store_a_value_is_read(tmp_path: Path, stored: str, read: str) -> None:
    path = write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS)
    change(path, SHEET, '<c r="A2"><v>7</v></c>', stored)
    assert read_xlsx(path).column("id")[0] == read


def test_rich_text_is_joined_without_phonetic_hints(tmp_path: Path) -> None:
    path = write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS)
    rich = "<r><t>a\uff0c</t></r><r><t>b</t></r><rPh sb='0' eb='1'><t>hint</t></rPh>"
    change(path, "xl/sharedStrings.xml", "<t>a\uff0cb &amp; c</t>", rich)
    assert read_xlsx(path).column("left eye")[0] == "a\uff0cb"


def test_warnings_of_the_library_stay_inside(tmp_path: Path) -> None:
    path = write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS)
    extension = '</sheetData><extLst><ext uri="{CCE6A557-97BC-4B89-ADB6-D9C93CAAB3DF}"/></extLst>'
    change(path, SHEET, "</sheetData>", extension)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_xlsx(path).column("id") == ["7", "12"]


class TestMistakes:
    def test_files_that_are_not_a_workbook(self, tmp_path: Path) -> None:
        path = tmp_path / "a.xlsx"
        assert "No such file" in problem_of(path)
        path.write_text("ID,N\n1,1\n")
        assert f"{path}: cannot be read as an Excel workbook" in problem_of(path)
        assert "save the table as CSV" in problem_of(path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "not a workbook")
        assert "cannot be read as an Excel workbook" in problem_of(path)

    def test_a_workbook_behind_a_password(self, tmp_path: Path) -> None:
        path = tmp_path / "a.xlsx"
        path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(2000))  # Excel encrypts into an OLE file
        assert "protected by a password" in problem_of(path)

    @pytest.mark.parametrize(
        ("name", "old", "new"),
        [
            (SHEET, "</row>", ""),
            (SHEET, '<c r="A2"><v>7</v></c>', '<c r="A2" t="n"><v>seven</v></c>'),
            (SHEET, 't="s"><v>', 't="s"><v>99'),
            ("xl/workbook.xml", "<sheets>", "<sheets><!--"),
            ("[Content_Types].xml", "<Override", "<Overrid"),
        ],
    )
    def test_damaged_parts(self, tmp_path: Path, name: str, old: str, new: str) -> None:
        path = change(write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS), name, old, new)
        assert "cannot be read as an Excel workbook" in problem_of(path)

    def test_a_file_that_ends_early_or_has_flipped_bytes(self, tmp_path: Path) -> None:
        path = write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS)
        content = path.read_bytes()
        path.write_bytes(content[:-200])
        assert "cannot be read as an Excel workbook" in problem_of(path)
        start = content.index(SHEET.encode()) + len(SHEET) + 30
        path.write_bytes(
            content[:start] + bytes(byte ^ 0x55 for byte in content[start : start + 60]) + content[start + 60 :]
        )
        assert "cannot be read as an Excel workbook" in problem_of(path)

    def test_a_workbook_that_would_fill_the_memory_is_not_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_xlsx(tmp_path / "a.xlsx", COLUMNS, ROWS)
        monkeypatch.setattr(xlsx, "MAX_BYTES", 100)
        assert "unpacks to more than" in problem_of(path)
