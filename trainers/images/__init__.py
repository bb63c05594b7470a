"""Images on their way into a network: augmentation, views, test-time augmentation, batches."""
