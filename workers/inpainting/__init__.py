"""The inpainting stage's models."""
