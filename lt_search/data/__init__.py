"""Data sets: label tables, splits, and images decoded once per node."""

from lt_search.data.decoded import cache_folder, open_images
from lt_search.data.registry import BUNDLED, PUBLISHED, bundled_for, load_dataset
from lt_search.data.table import Dataset, ImageHeader, ImageSource, Part, UnreadableImageError

__all__ = [
    "BUNDLED",
    "PUBLISHED",
    "Dataset",
    "ImageHeader",
    "ImageSource",
    "Part",
    "UnreadableImageError",
    "bundled_for",
    "cache_folder",
    "load_dataset",
    "open_images",
]
