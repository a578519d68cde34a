"""The steps from the files of a source to a dataset folder."""
