"""What is computed of runs: averages, intervals, tests."""
