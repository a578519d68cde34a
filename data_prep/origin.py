"""Where a public dataset comes from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """What a user of a public dataset must know before and after the download.

    Attributes:
        citation: What to cite.
        licence: Of the data, or that none is stated.
        download: Where it is and which files are needed.
    """

    citation: str
    licence: str
    download: str

    def text(self) -> str:
        """The same for the help of a command."""
        return f"Cite: {self.citation}. Licence: {self.licence}. Download: {self.download}."
