"""A fine-tuned network on scans that it has not seen, or an encoder's features of them."""

PASSED_ON = (
    *("labels", "patient_regex", "patient_by", "case", "format"),
    *("irregular", "values", "hu_offset", "key", "workers"),
)
"""Flags of `data_prep.folder` that the command takes as well."""
