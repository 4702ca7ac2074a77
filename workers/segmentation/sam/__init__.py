"""Segment Anything: every mask of a photo, and the product's among them."""
