"""The producer: lists sources, submits and follows jobs, reports. Never imports torch."""

from producer.client import Client, Run
from producer.selection import Selection

__all__ = ["Client", "Run", "Selection"]
