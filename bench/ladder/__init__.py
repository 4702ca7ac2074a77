"""Ladders: each stage from the original script's way to ours, rung by rung."""
