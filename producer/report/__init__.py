"""The report of a job: one HTML file that needs nothing but itself."""

from producer.report.page import write_report
from producer.report.records import Card, Summary

__all__ = ["Card", "Summary", "write_report"]
