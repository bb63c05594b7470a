from pathlib import Path

from PIL import Image

from lt_search.data import load_dataset
from lt_search.data.check import describe
from tests.helpers.pictures import make_table, multi_class_rows, multi_label_rows


def test_counts_groups_sizes_and_modes_are_found(tmp_path: Path) -> None:
    table = make_table(tmp_path, multi_label_rows(50))
    Image.new("RGB", (40, 30)).save(tmp_path / "x007.png")
    dataset = load_dataset(str(table))
    found = describe(dataset)
    assert found.sound
    assert found.modes == {"L": 49, "RGB": 1} and found.channels == 3
    assert found.sizes == {(12, 12): 49, (40, 30): 1}
    assert sum(part.groups for part in found.parts.values()) == 25
    assert sum(part.unlabelled for part in found.parts.values()) == 10
    for part in dataset.parts():
        assert found.parts[part.name].images == len(part)
        assert list(found.parts[part.name].counts) == part.labels.sum(axis=0).tolist()


def test_head_and_tail_follow_the_training_counts(tmp_path: Path) -> None:
    found = describe(load_dataset(str(make_table(tmp_path, multi_class_rows({"a": 10, "b": 40, "c": 20})))))
    assert (found.class_groups.head, found.class_groups.medium, found.class_groups.tail) == ((1,), (2,), (0,))


def test_every_damaged_image_of_every_part_is_found(tmp_path: Path) -> None:
    table = make_table(tmp_path, multi_class_rows({"a": 20, "b": 20}))
    dataset = load_dataset(str(table))
    for part in dataset.parts():
        victim = tmp_path / part.ids[1]
        victim.write_bytes(victim.read_bytes()[:-60])
    (tmp_path / dataset.test.ids[2]).unlink()
    found = describe(dataset)
    assert not found.sound
    names = [f"{part.name}: {part.ids[1]}" for part in dataset.parts()] + [f"test: {dataset.test.ids[2]}"]
    assert [line.split(" (")[0] for line in found.unreadable] == names
    assert all(name in found.render() for name in names)


def test_the_text_says_all_of_it(tmp_path: Path) -> None:
    text = describe(load_dataset(str(make_table(tmp_path, multi_label_rows(50))))).render()
    for part in ("multi-label, 50 images, 3 classes", "7:1:2 by patient, seed 0", "all 12 x 12; 50 L; grey"):
        assert part in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["class"] == ["class", "train", "val", "test"]
    assert lines["mass"][1] in ("head", "medium", "tail") and len(lines["mass"]) == 5
    assert sum(map(int, lines["images"][1:])) == 50
    assert sum(map(int, lines["patients"][3:])) == 25
    assert "fewer than 5 images" in text


def test_images_without_any_label_are_counted_in_every_part(tmp_path: Path) -> None:
    rows = [
        {**row, "label": row["label"] if number % 5 == 3 else ""} for number, row in enumerate(multi_label_rows(80))
    ]
    rows[0]["label"], rows[1]["label"] = "edema", "edema"
    dataset = load_dataset(str(make_table(tmp_path, rows)))
    found = describe(dataset)
    assert found.sound
    unlabelled = {part.name: int((part.labels.max(axis=1) == 0).sum()) for part in dataset.parts()}
    assert sum(unlabelled.values()) == 80 - 16 - 2
    assert {name: part.unlabelled for name, part in found.parts.items()} == unlabelled
    (line,) = (line for line in found.render().splitlines() if line.startswith("(no label)"))
    assert line.split()[2:] == [str(count) for count in unlabelled.values()]
