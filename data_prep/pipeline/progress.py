"""One line on stderr every few seconds: what is done, how fast, and when it will end."""

import sys
import time


class Progress:
    """Progress of one step.

    Args:
        what: What is counted, in the plural.
        total: How many there are, if that is known.
        every: Seconds between lines.
    """

    def __init__(self, what: str, total: int | None = None, every: float = 5.0):
        self._what, self._total, self._every = what, total, every
        self._start = self._last = time.monotonic()
        self._done = self._skipped = self._slices = 0

    def skip(self, count: int) -> None:
        """An earlier try did these."""
        self._skipped += count

    def step(self, count: int = 1, slices: int = 0) -> None:
        """These are done now, and gave so many slices."""
        self._done += count
        self._slices += slices
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            print(self._line(now - self._start), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        done = self._done + self._skipped
        of = f" of {self._total:,}" if self._total else ""
        parts = [f"{done:,}{of} {self._what}"]
        rate = self._done / seconds
        if self._slices:
            parts.append(f"{self._slices / seconds:,.0f} slices/s")
        else:
            parts.append(f"{rate:,.0f} per second")
        if self._total and self._total > done:
            end = time.localtime(time.time() + (self._total - done) / rate)
            parts.append(f"done at {time.strftime('%H:%M:%S', end)}")
        return ", ".join(parts)
