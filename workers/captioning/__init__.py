"""The captioning stage's models."""
