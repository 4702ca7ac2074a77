"""The segmentation stage's models."""
