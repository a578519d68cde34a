"""A fine-tuned network on scans that it has not seen, or an encoder's features of them."""

PASSED_ON = ("labels", "patient_regex", "key", "workers", "format")
"""Flags of `data_prep.folder` that the command takes as well."""
