"""Image batches, augmentation, and test-time augmentation."""
