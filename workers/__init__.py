"""The Celery app, the three stages and their models."""
