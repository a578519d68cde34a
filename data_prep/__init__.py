"""Prepare CT slices: each module writes one kind of source as a dataset folder (see `records`).

Nothing here imports JAX, opens a network connection or writes a patient's identity.
"""
