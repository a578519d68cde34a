"""The command of the phantom."""

from data_prep.phantom.source import main

if __name__ == "__main__":
    raise SystemExit(main())
