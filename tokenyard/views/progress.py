"""The progress of one batch: live on a terminal, plain lines in a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from broker.heartbeat import Heartbeat
from tokenyard.views.devices import device_lines, device_table
from tokenyard.views.eta import Eta
from tokenyard.views.text import duration
from workers.rates import RateWindow

_RATE_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is: jobs (``failed`` with the cancelled ones) and the tokens of those that ended."""

    total: int
    done: int
    failed: int
    prompt_tokens: int
    output_tokens: int

    @property
    def ended(self) -> int:
        """Jobs that have their result."""
        return self.done + self.failed


@dataclass(frozen=True, slots=True)
class _Moment:
    """What is shown at one time: seconds, and output tokens a second."""

    progress: BatchProgress
    output_tokens_per_s: float
    elapsed_s: float
    left_s: float | None

    def words(self) -> str:
        left = f"{duration(self.left_s)} left" if self.left_s is not None else "time left unknown"
        return f"{self.progress.failed:,} failed, {self.output_tokens_per_s:,.0f} output tokens/s, {left}"


class ProgressView:
    """Shows a batch while it runs. A context manager; the caller says when it looked, no clock is read here.

    Args:
        console: where to show it.
        log_interval_s: where the console is no terminal, seconds between two lines at least.
    """

    def __init__(self, console: Console, *, log_interval_s: float = 5.0) -> None:
        self._console = console
        self._log_interval_s = log_interval_s
        self._live: Live | None = None
        self._tokens = RateWindow(_RATE_WINDOW_S)
        self._eta = Eta()
        self._began: float | None = None
        self._last: tuple[_Moment, Mapping[str, Heartbeat | None]] | None = None
        self._logged = ""
        self._logged_at = float("-inf")

    def __enter__(self) -> ProgressView:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        live, self._live = self._live, None
        if live is not None:
            if self._last is not None:
                live.update(_bar(self._last[0]))  # the devices' rates are of no more interest
            live.stop()
        elif self._last is not None:
            self._log(*self._last)

    def update(self, progress: BatchProgress, devices: Mapping[str, Heartbeat | None], now: float) -> None:
        """Show where the batch and its devices are, ``now`` seconds on any clock that only grows."""
        self._last = self._moment(progress, devices, now), devices
        if self._live is not None:
            self._live.update(Group(_bar(self._last[0]), Text(), device_table(devices, None)), refresh=True)
        elif now - self._logged_at >= self._log_interval_s and self._log(*self._last):
            self._logged_at = now

    def note(self, text: str) -> None:
        """Print a line; on a terminal it stays above the progress."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _moment(self, progress: BatchProgress, devices: Mapping[str, Heartbeat | None], now: float) -> _Moment:
        if self._began is None:
            self._began = now
        _, tokens_per_s = self._tokens.add(now, progress.prompt_tokens, progress.output_tokens)
        if not any(beat and beat.running for beat in devices.values()) and not self._moved(progress):
            self._eta.pause()
        left = self._eta.update(now, progress.ended, progress.total)
        return _Moment(progress, tokens_per_s, now - self._began, left)

    def _moved(self, progress: BatchProgress) -> bool:
        return self._last is not None and progress.ended != self._last[0].progress.ended

    def _log(self, moment: _Moment, devices: Mapping[str, Heartbeat | None]) -> bool:
        """Print a line, unless it says what the last one said."""
        progress = moment.progress
        line = "; ".join([f"{progress.ended:,}/{progress.total:,} jobs, {moment.words()}", *device_lines(devices)])
        if line == self._logged:
            return False
        self.note(line)
        self._logged = line
        return True


def _bar(moment: _Moment) -> RenderableType:
    progress = moment.progress
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    bar = ProgressBar(total=max(progress.total, 1), completed=progress.ended)
    line.add_row(bar, Text(f"{progress.ended:,}/{progress.total:,} jobs"))
    words = Text(f"{moment.words()}, {duration(moment.elapsed_s)} elapsed", style="dim" if not progress.failed else "")
    return Group(line, words)
