"""Lists sources, submits and follows jobs, reports: the command line. Never imports torch."""
