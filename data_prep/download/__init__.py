"""Fetching public datasets: the one place that opens a connection."""
