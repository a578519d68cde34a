"""Prepare CT slices: each source writes a dataset folder (see `records`).

Nothing here imports JAX or writes a patient's identity. `download` alone opens a connection.
Read `source.py`, what a format has to supply, then `preparation.py`, what is done with it.
"""
