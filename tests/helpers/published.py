"""Small folders in the layout in which data sets are published."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from lt_search.data.readers import cxr_lt_2023, hyper_kvasir, isic2019, isic_archive_lt, nih_cxr14, odir5k, skin7
from tests.helpers.pictures import save_grey, write_csv

ISIC_COUNTS = {"MEL": 24, "NV": 40, "BCC": 18, "AK": 10, "BKL": 14, "DF": 6, "VASC": 6, "SCC": 8}

SKIN7_COUNTS = {"MEL": 20, "NV": 40, "BCC": 15, "AKIEC": 10, "BKL": 15, "DF": 10, "VASC": 10}

NIH_COLUMNS = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
"""The header as published: the brackets hold commas."""


def make_isic(
    root: Path,
    counts: Mapping[str, int] = ISIC_COUNTS,
    *,
    images_per_lesion: int = 1,
    pictures: bool = True,
) -> Path:
    """ISIC 2019 with so many images of each class; every fifth is called `_downsampled`, every seventh has no lesion.

    Without `pictures`, image files are empty, which does for reading but not for decoding.
    """
    folder = root / isic2019.IMAGES
    folder.mkdir(parents=True)
    labels = [name for name, count in counts.items() for _ in range(count)]
    labels = [labels[index] for index in np.random.default_rng(0).permutation(len(labels))]
    seen: dict[str, int] = dict.fromkeys(counts, 0)
    truth, metadata = [], []
    for number, label in enumerate(labels):
        image = f"ISIC_{number:07d}" + "_downsampled" * (number % 5 == 0)
        lesion = "" if number % 7 == 0 else f"IL_{label}_{seen[label] // images_per_lesion}"
        seen[label] += 1
        one_hot = [f"{float(label == name)}" for name in (*isic2019.CLASSES, "UNK")]
        truth.append([image, *one_hot])
        metadata.append([image, "45.0", "anterior torso", lesion, "female"])
        if pictures:
            save_rgb(folder / f"{image}.jpg", number)
        else:
            (folder / f"{image}.jpg").touch()
    write_csv(root / isic2019.GROUND_TRUTH, ["image", *isic2019.CLASSES, "UNK"], truth)
    columns = ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"]
    write_csv(root / isic2019.METADATA, columns, metadata)
    return root


def save_rgb(path: Path, seed: int = 0, size: tuple[int, int] = (10, 14)) -> Path:
    """A noisy RGB file of so many rows and columns that differs with its seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_skin7(
    root: Path,
    counts: Mapping[str, int] = SKIN7_COUNTS,
    *,
    lesions: str = skin7.LESIONS[0],
    images_per_lesion: int = 2,
    unpacked: bool = False,
) -> Path:
    """ISIC 2018 task 3 with so many images of each class; `unpacked`, tables lie in folders of their archives."""
    labels = [name for name, count in counts.items() for _ in range(count)]
    seen: dict[str, int] = dict.fromkeys(counts, 0)
    truth, groups = [], []
    for number, label in enumerate(labels):
        image = f"ISIC_{24306 + number:07d}"
        groups.append([f"HAM_{label}_{seen[label] // images_per_lesion}", image, "histo"])
        seen[label] += 1
        truth.append([image, *(f"{float(label == name)}" for name in skin7.CLASSES)])
        save_rgb(root / skin7.IMAGES / f"{image}.jpg", number)
    table, place = skin7.GROUND_TRUTH, root / lesions
    write_csv(root / (Path(table).stem if unpacked else "") / table, ["image", *skin7.CLASSES], truth)
    if lesions == skin7.LESIONS[0]:
        columns = ["image", "lesion_id", "diagnosis_confirm_type"]
        write_csv(place, columns, [[image, lesion, kind] for lesion, image, kind in groups])
    else:
        write_csv(place, ["lesion_id", "image_id", "dx_type"], groups)
    return root


ODIR_COLUMNS = (
    *("ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus"),
    *("Left-Diagnostic Keywords", "Right-Diagnostic Keywords", *odir5k.CLASSES),
)

ODIR_PATIENTS = (
    ("cataract", "normal fundus", "C"),
    ("normal fundus", "normal fundus\uff0clens dust", "N"),
    ("laser spot\uff0cmoderate non proliferative retinopathy", "moderate non proliferative retinopathy", "DO"),
    ("wet age-related macular degeneration", "dry age-related macular degeneration\uff0cglaucoma", "GA"),
    ("suspected glaucoma", "hypertensive retinopathy", "GH"),
    ("pathological myopia", "low image quality,maculopathy", "MO"),
    ("anterior segment image", "proliferative diabetic retinopathy\uff0chypertensive retinopathy", "DH"),
)
"""Keywords of the left and the right eye as published, and the labels of the patient."""


def odir_rows(n_patients: int = 70) -> list[list[str]]:
    """Rows of the table of ODIR-5K; patient ids are not consecutive."""
    rows = []
    for number in range(n_patients):
        patient = str(100_000 + 3 * number)
        left, right, labels = ODIR_PATIENTS[number % len(ODIR_PATIENTS)]
        eyes = [f"{patient}_left.jpg", f"{patient}_right.jpg"]
        rows.append([patient, "69", "Female", *eyes, left, right, *(str(int(c in labels)) for c in odir5k.CLASSES)])
    return rows


def make_odir(
    root: Path,
    rows: Sequence[Sequence[str]] | None = None,
    *,
    table: str = odir5k.TABLES[0],
    columns: Sequence[str] = ODIR_COLUMNS,
    images: str = odir5k.IMAGES[0],
) -> Path:
    """ODIR-5K; left eyes have 10 x 14 pixels, right ones 9 x 12."""
    rows = odir_rows() if rows is None else rows
    for number, row in enumerate(rows):
        save_rgb(root / images / row[3], 2 * number, (10, 14))
        save_rgb(root / images / row[4], 2 * number + 1, (9, 12))
    if table.endswith(".xlsx"):
        write_xlsx(root / table, columns, rows)
    else:
        write_csv(root / table, columns, rows)
    return root


def write_xlsx(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """A workbook as Excel saves it: text is shared, numbers are not, empty cells are left out; a second sheet."""
    shared: dict[str, int] = {}
    lines = []
    for number, row in enumerate((columns, *rows), 1):
        cells = []
        for column, text in enumerate(row):
            place = f'r="{chr(ord("A") + column)}{number}"'
            if text.isdecimal():
                cells.append(f"<c {place}><v>{text}</v></c>")
            elif text:
                cells.append(f'<c {place} s="1" t="s"><v>{shared.setdefault(text, len(shared))}</v></c>')
        lines.append(f'<row r="{number}">{"".join(cells)}</row>')
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    types = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    kinds = {"workbook": "sheet.main", "worksheets/sheet1": "worksheet", "worksheets/sheet2": "worksheet"}
    overrides = "".join(
        f'<Override PartName="/xl/{name}.xml" ContentType="{types}.{kind}+xml"/>'
        for name, kind in (kinds | {"sharedStrings": "sharedStrings"}).items()
    )
    sheets = '<sheet name="Labels" sheetId="3" r:id="rId7"/><sheet name="Notes" sheetId="1" r:id="rId1"/>'
    strings = "".join(f"<si><t>{escape(text)}</t></si>" for text in shared)
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        f"{overrides}</Types>",
        "xl/workbook.xml": f'<workbook {main} xmlns:r="{office}"><sheets>{sheets}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}">'
        f'<Relationship Id="rId1" Type="{office}/worksheet" Target="worksheets/sheet1.xml"/>'
        f'<Relationship Id="rId7" Type="{office}/worksheet" Target="worksheets/sheet2.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f"<worksheet {main}><sheetData/></worksheet>",
        "xl/worksheets/sheet2.xml": f"<worksheet {main}><sheetData>{''.join(lines)}</sheetData></worksheet>",
        "xl/sharedStrings.xml": f"<sst {main}>{strings}</sst>",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n{text}')
    return path


def cxr_lt_rows(n_subjects: int = 60) -> list[dict[str, str]]:
    """Rows of the tables of CXR-LT: of each subject a study of two views, with one or two findings or none."""
    names = cxr_lt_2023.CLASSES
    rows = []
    for number in range(n_subjects):
        subject, study = f"{10000032 + 7 * number}", f"{50414267 + 13 * number}"
        labels = {names[number % 26], names[number * 5 % 26]} if number % 10 else set()
        for view, position in enumerate(("PA", "LATERAL")):
            image = f"{number:08x}-bde0afdd-112c0b34-7bc16630-{view:08x}"
            rows.append(
                {
                    "dicom_id": image,
                    "subject_id": subject,
                    "study_id": study,
                    "ViewPosition": position if number % 25 else "",
                    "path": f"files/p{subject[:2]}/p{subject}/s{study}/{image}.jpg",
                }
                | {name: str(int(name in labels)) for name in names}
            )
    return rows


def make_cxr_lt(
    root: Path, rows: Sequence[Mapping[str, str]] | None = None, *, tables: str = "", images: str = ""
) -> Path:
    """CXR-LT 2023: of each six subjects, the fifth is in development and the sixth in test."""
    rows = cxr_lt_rows() if rows is None else rows
    for number, row in enumerate(rows):
        save_grey(root / images / row["path"], number, 8)
    for part, name in enumerate(cxr_lt_2023.TABLES):
        own = [row for number, row in enumerate(rows) if {4: 1, 5: 2}.get(number // 2 % 6, 0) == part]
        write_csv(root / tables / name, list(rows[0]), [list(row.values()) for row in own])
    return root


def archive_rows(per_class: int = 8) -> list[tuple[str, str, str, str]]:
    """Image, class, patient and lesion: pairs of a patient, then pairs of a lesion, then images without either."""
    rows = []
    for index, label in enumerate(isic_archive_lt.CLASSES):
        for number in range(per_class):
            kind, pair = number % 6 // 2, f"{index:03d}{number // 2:04d}"
            image = f"ISIC_{index:03d}{number:04d}"
            rows.append((image, label, f"IP_{pair}" * (kind == 0), f"IL_{pair}" * (kind == 1)))
    return rows


def make_archive(root: Path, rows: Sequence[tuple[str, str, str, str]] | None = None, *, folder: str = "") -> Path:
    """Images of the ISIC Archive with the archive's table of each diagnosis beside them; every fifth is a `.JPG`."""
    rows = archive_rows() if rows is None else rows
    for number, row in enumerate(rows):
        save_rgb(root / folder / f"{row[0]}{'.jpg' if number % 5 else '.JPG'}", number, (8, 9))
    for label in isic_archive_lt.CLASSES:
        own = [[image, "CC-0", patient, lesion] for image, of, patient, lesion in rows if of == label]
        write_csv(root / folder / f"{label}.csv", ["isic_id", "copyright_license", "patient_id", "lesion_id"], own)
    return root


def add_archive_lists(folder: Path, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """The lists of LMD: of each eight images, the second last is in validation and the last in test."""
    names = isic_archive_lt.LISTS
    for part, name in enumerate(names):
        own = [row for number, row in enumerate(rows) if {6: 1, 7: 2}.get(number % 8, 0) == part]
        lines = [[image, *(int(label == of) for of in isic_archive_lt.CLASSES)] for image, label, *_ in own]
        write_csv(folder / name, ["image", *isic_archive_lt.CLASSES], [list(map(str, line)) for line in lines])


def kvasir_rows(per_class: int = 13) -> list[tuple[str, str, str, str]]:
    """Video file, organ, finding and classification, findings one after the other as in the published table."""
    upper = ("barretts", "esophagitis", "pylorus", "retroflex-stomach", "z-line")
    return [
        (
            f"{index:08x}-{number:04x}-4000-8000-0123456789ab",
            "Upper GI" if finding.startswith(upper) else "Lower GI",
            finding,
            "pathological-findings" if "grade" in finding else "anatomical-landmarks",
        )
        for index, finding in enumerate(hyper_kvasir.CLASSES)
        for number in range(per_class)
    ]


def make_kvasir(root: Path, rows: Sequence[tuple[str, str, str, str]] | None = None) -> Path:
    """The labelled images of Hyper-Kvasir, without lists."""
    rows = kvasir_rows() if rows is None else rows
    folder = root / hyper_kvasir.IMAGES
    for number, (image, organ, finding, kind) in enumerate(rows):
        place = {"Upper GI": "upper-gi-tract", "Lower GI": "lower-gi-tract"}.get(organ, organ)
        save_rgb(folder / place / kind / finding / f"{image}.jpg", number, (8, 9))
    write_csv(folder / hyper_kvasir.TABLE, ["Video file", "Organ", "Finding", "Classification"], rows)
    return root


def nih_rows(n_patients: int = 60) -> list[tuple[str, str, str]]:
    """Image, findings and patient: two images of each patient, the first with one finding, the other with two or none.

    Every finding has images of at least four patients.
    """
    names = nih_cxr14.CLASSES
    rows = []
    for patient in range(1, n_patients + 1):
        first = names[patient % len(names)]
        second = "|".join([first, names[(patient + 5) % len(names)]]) if patient % 2 else "No Finding"
        rows += [(f"{patient:08d}_00{visit}.png", found, str(patient)) for visit, found in enumerate((first, second))]
    return rows


def make_nih(
    root: Path,
    rows: Sequence[tuple[str, str, str]] | None = None,
    *,
    table: str = "Data_Entry_2017_v2020.csv",
    folders: Sequence[str] = ("images",),
    trailing: bool = False,
) -> Path:
    """NIH ChestX-ray14 without lists; image i is in folder i of `folders`, again from the first after the last.

    With `trailing`, header and rows of the table end with an empty column.
    """
    rows = nih_rows() if rows is None else rows
    end = "," * trailing
    lines = [NIH_COLUMNS + end]
    for number, (image, found, patient) in enumerate(rows):
        save_grey(root / folders[number % len(folders)] / image, number)
        lines.append(f"{image},{found},0,{patient},58,M,PA,2682,2749,0.143,0.143{end}")
    (root / table).write_text("\n".join(lines) + "\n")
    return root


def write_list(path: Path, lines: Sequence[str]) -> Path:
    """A published list: its last line has no newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path


def add_official_lists(root: Path, rows: Sequence[tuple[str, str, str]], n_test: int = 20) -> None:
    """The official lists, with the last patients in the test part."""
    patients = sorted({int(patient) for _, _, patient in rows})
    held_out = {str(patient) for patient in patients[len(patients) - n_test :]}
    write_list(root / "train_val_list.txt", [image for image, _, patient in rows if patient not in held_out])
    write_list(root / "test_list.txt", [image for image, _, patient in rows if patient in held_out])


def add_chexnet_lists(folder: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """The CheXNet lists: of each six patients, the fifth is in validation and the sixth in test."""
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for image, found, patient in rows:
        part = {4: "val", 5: "test"}.get(int(patient) % 6, "train")
        labels = " ".join(str(int(name in found.split("|"))) for name in nih_cxr14.CLASSES)
        lines[part].append(f"{image} {labels}")
    for part, own in lines.items():
        write_list(folder / f"{part}_list.txt", own)


def rewrite(table: Path, column: str, change: Mapping[str, str], key: str) -> None:
    """Changes cells of a column of a CSV file, by the cell that their row has in column `key`."""
    with table.open(newline="") as file:
        columns, *rows = list(csv.reader(file))
    for row in rows:
        if row[columns.index(key)] in change:
            row[columns.index(column)] = change[row[columns.index(key)]]
    write_csv(table, columns, rows)
