"""The command that fetches public datasets."""

from data_prep.download.fetch import main

if __name__ == "__main__":
    raise SystemExit(main())
