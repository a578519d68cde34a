"""Machines, processes and devices that take part in a run."""
