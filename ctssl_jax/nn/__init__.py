"""The networks: Linen modules that know nothing of data, methods or devices."""
