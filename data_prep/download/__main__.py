"""Fetches public datasets, whose terms you have read."""

from data_prep.download.fetch import main

if __name__ == "__main__":
    raise SystemExit(main())
