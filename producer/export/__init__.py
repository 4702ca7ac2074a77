"""Hands a job's results over: tables of all items, and feeds for shops."""

from producer.export.feeds import join
from producer.export.formats import FEEDS, Feed, FeedOptions
from producer.export.rows import Columns
from producer.export.tables import TABLES, write_table

__all__ = ["FEEDS", "TABLES", "Columns", "Feed", "FeedOptions", "join", "write_table"]
