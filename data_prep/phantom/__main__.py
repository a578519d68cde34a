"""The embedded CT phantom: drawn slices with lesions, as a dataset folder."""

from data_prep.phantom.source import main

if __name__ == "__main__":
    raise SystemExit(main())
