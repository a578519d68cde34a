"""Prepare CT slices: each source writes a dataset folder (see `pipeline/records.py`).

Nothing here imports JAX or writes a patient's identity. `download` alone opens a connection.
Read `source.py`, what a format has to supply, then `pipeline/prepare.py`, what is done with it.
"""
