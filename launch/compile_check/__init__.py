"""Whether a config fits a TPU slice, asked of the TPU's own compiler."""
