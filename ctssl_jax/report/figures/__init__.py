"""What is drawn, and the same numbers as tables."""
