"""The embedded CT phantom."""
