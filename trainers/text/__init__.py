"""Text encoders and label embeddings."""
