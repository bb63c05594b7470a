from __future__ import annotations

import numpy as np
import pytest

from lt_search.data.label_alignment import align_labels, plain

CLASSES = ("Pleural Effusion", "Mass", "Pleural Thickening", "Fracture")
NAN = np.nan


def test_columns_are_found_by_name_alias_and_spelling() -> None:
    found = align_labels([[1, 0, 1], [0, 1, 0]], ["Effusion", "MASS", "Pleural_Thickening"], CLASSES)
    np.testing.assert_array_equal(found.labels, [[1, 0, 1, NAN], [0, 1, 0, NAN]])
    assert found.unmapped == ()
    assert found.unknown == ("Fracture",)


@pytest.mark.parametrize("own", ["Effusion", "Pleural Effusion"])
@pytest.mark.parametrize("further", ["effusion", "Pleural_Effusion"])
def test_aliases_hold_in_both_directions(own: str, further: str) -> None:
    found = align_labels([[1, 0], [0, 1]], [further, "Mass"], ["Mass", own])
    np.testing.assert_array_equal(found.labels, [[0, 1], [1, 0]])
    assert found.unmapped == found.unknown == ()


def test_names_that_are_no_class_are_listed_and_left_out() -> None:
    found = align_labels([[1, 1, 0]], ["Hernia", "Mass", "Nodule"], CLASSES)
    np.testing.assert_array_equal(found.labels, [[NAN, 1, NAN, NAN]])
    assert found.unmapped == ("Hernia", "Nodule")
    assert found.unknown == ("Pleural Effusion", "Pleural Thickening", "Fracture")


def test_uncertain_and_blank_labels_are_unknown() -> None:
    found = align_labels([[-1.0, 1.0], [NAN, 0.0]], ["Mass", "Fracture"], CLASSES)
    np.testing.assert_array_equal(found.labels[:, [1, 3]], [[NAN, 1], [NAN, 0]])


def test_an_own_class_is_taken_before_an_alias() -> None:
    found = align_labels([[1]], ["Effusion"], ["Pleural Effusion", "Effusion"])
    np.testing.assert_array_equal(found.labels, [[NAN, 1]])
    found = align_labels([[1, 0]], ["Effusion", "Pleural Effusion"], ["Pleural Effusion", "Effusion"])
    np.testing.assert_array_equal(found.labels, [[0, 1]])


def test_two_names_of_one_class_are_refused() -> None:
    with pytest.raises(ValueError, match="several labels are the same class: Effusion and pleural_effusion"):
        align_labels([[1, 0]], ["Effusion", "pleural_effusion"], CLASSES)


def test_labels_of_which_none_is_a_class_are_refused_with_both_lists() -> None:
    with pytest.raises(ValueError, match=r"none of the labels cat, dog is one of the classes Pleural Effusion, Mass"):
        align_labels([[1, 0]], ["cat", "dog"], CLASSES)


def test_all_of_chest_xray14_maps_to_cxr_lt() -> None:
    shared = ("Atelectasis", "Cardiomegaly", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax")
    shared += ("Consolidation", "Edema", "Emphysema", "Fibrosis", "Hernia")
    nih, cxr_lt = (*shared, "Effusion", "Pleural_Thickening"), (*shared, "Pleural Effusion", "Pleural Thickening")
    found = align_labels(np.eye(14), nih, (*cxr_lt, "Support Devices"))
    assert found.unmapped == ()
    assert found.unknown == ("Support Devices",)
    np.testing.assert_array_equal(found.labels[:, :14], np.eye(14))


def test_spelling_is_case_underscores_and_spaces() -> None:
    assert plain("  Pleural__Thickening ") == plain("pleural thickening")
    assert plain("Mass") != plain("Masses")
