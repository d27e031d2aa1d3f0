"""Predicted output lengths, put right by how far off they were on the whole. Pure."""

from __future__ import annotations

from dataclasses import dataclass

#: Jobs over which the error is averaged; as many are taken to have been right before the first ends.
_MEMORY_JOBS = 200
#: Predictions are not believed to be further off than this.
_MOST = 4.0
#: From this mean error on a prediction is a guess.
_GUESSED = 0.2
_LEAST_JOBS = 10
#: Those in use are made anew when the correction moved by this share.
_MOVED = 0.25


@dataclass(slots=True)
class Calibration:
    """True output tokens over predicted ones, of late."""

    factor: float = 1.0
    _true: float = 0.0
    _predicted: float = 0.0
    _missed: float = 0.0
    _jobs: int = 0

    @property
    def error(self) -> float:
        """Mean absolute error of the corrected predictions, as a share of the mean true output."""
        return self._missed / max(self._true, 1.0)

    @property
    def guessed(self) -> bool:
        """Whether single predictions are mere guesses, as far as can be told."""
        return self._jobs >= _LEAST_JOBS and self.error > _GUESSED

    def correct(self, output_tokens: int, max_tokens: int) -> int:
        """A prediction put right, never above ``max_tokens`` (0: no bound)."""
        corrected = max(1, round(output_tokens * self.factor))
        return min(corrected, max_tokens) if max_tokens else corrected

    def observe(self, predicted_tokens: int, output_tokens: int) -> bool:
        """A job ended, predicted so before correction.

        True where the correction moved so far that predictions should be made anew.
        """
        keep = 1 - 1 / _MEMORY_JOBS
        self._jobs += 1
        self._true = keep * self._true + output_tokens
        self._missed = keep * self._missed + abs(predicted_tokens * self.factor - output_tokens)
        self._predicted = keep * self._predicted + predicted_tokens
        # The first to end are the short ones: until enough have ended the correction is held back.
        weight = min(1.0, self._jobs / _MEMORY_JOBS)
        wanted = (self._true / max(self._predicted, 1.0)) ** weight
        wanted = min(max(wanted, 1 / _MOST), _MOST)
        if abs(wanted - self.factor) <= _MOVED * self.factor:
            return False
        self.factor = wanted
        return True
