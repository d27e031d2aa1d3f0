"""How many tokens a job will take, learned from the jobs that ended. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from broker.cluster import InFlight
from broker.jobs import WaitingJob

#: Where nothing has been seen yet: about 4 bytes a token in English text, and a middling answer.
_FIRST_TOKENS_PER_BYTE = 0.25
_FIRST_OUTPUT_TOKENS = 200.0
#: No tokenizer makes more of a byte; what claims so is wrong or forged.
_MOST_TOKENS_PER_BYTE = 2.0
#: No body is larger, and no answer longer (tokens); likewise.
_MOST_BYTES = 2**32
_MOST_OUTPUT_TOKENS = 10**6
#: Weight of the newest observation: outputs scatter widely, their mean should not.
_GAIN = 0.005
#: A group's own mean counts as much as its parent's from this many jobs on.
_PRIOR_JOBS = 4
#: Predictions are made anew when a mean moved by this share since they were made.
_MOVED = 0.25
#: Groups remembered; the ones not seen for longest are forgotten.
_GROUPS = 4096

#: A batch, and the orders of magnitude of a body's size and of ``max_tokens``.
_Group = tuple[str, int, int]


@dataclass(slots=True)
class Mean:
    """An exponential mean: plain over the first observations, then with a memory of about two hundred."""

    value: float
    count: int = 0

    def observe(self, value: float) -> None:
        """Take one more in."""
        self.count += 1
        self.value += max(_GAIN, 1 / (self.count + 1)) * (value - self.value)


@dataclass(slots=True)
class LimitShare:
    """Outputs as a share of ``max_tokens``, and whether that tells more than their mean: where answers are cut off."""

    share: Mean = field(default_factory=lambda: Mean(1.0))
    _missed: Mean = field(default_factory=lambda: Mean(0.0))
    _missed_by_mean: Mean = field(default_factory=lambda: Mean(0.0))

    @property
    def better(self) -> bool:
        """Whether it was nearer to the truth than the mean was."""
        return self.share.count >= _PRIOR_JOBS and self._missed.value < self._missed_by_mean.value

    def observe(self, output_tokens: int, max_tokens: int, by_mean: float) -> None:
        """A job ended of which the mean output said ``by_mean``."""
        self._missed.observe(abs(self.share.value * max_tokens - output_tokens))
        self._missed_by_mean.observe(abs(by_mean - output_tokens))
        self.share.observe(output_tokens / max_tokens)


@dataclass(slots=True)
class LengthModel:
    """Prompt tokens from the body's size; output tokens from what jobs like it produced so far.

    Like it are, in this order: the jobs of its batch with bodies of about its size and its ``max_tokens``, those of its
    batch, those of the pool. A group that has seen little leans on the one above it. Where outputs keep to a share of
    ``max_tokens`` better than to a mean, it is that share.

    Attributes:
        tokens_per_byte: prompt tokens a byte of request body.
        output_tokens: output tokens of a job of the pool.
        error: mean absolute error of the predicted output, as a share of the true output's mean.
    """

    tokens_per_byte: Mean = field(default_factory=lambda: Mean(_FIRST_TOKENS_PER_BYTE))
    output_tokens: Mean = field(default_factory=lambda: Mean(_FIRST_OUTPUT_TOKENS))
    _groups: OrderedDict[_Group, Mean] = field(default_factory=OrderedDict[_Group, Mean])
    _limits: OrderedDict[_Group, LimitShare] = field(default_factory=OrderedDict[_Group, LimitShare])
    _missed: Mean = field(default_factory=lambda: Mean(0.0))
    _used: dict[_Group, float] = field(default_factory=dict[_Group, float])  # means that predictions in use rest on
    _expected: dict[_Group, float] = field(default_factory=dict[_Group, float])  # outputs, until one more is seen

    def predict(self, job: WaitingJob) -> tuple[int, int]:
        """Prompt and output tokens of a job; the output is never above its ``max_tokens``."""
        prompt = max(1, round(min(job.body_bytes, _MOST_BYTES) * self.tokens_per_byte.value))
        group = _group(job.batch_id, job.body_bytes, job.max_tokens)
        expected = self._expected.get(group)
        if expected is None:
            expected = self._expected[group] = self._output(group)
        if not job.max_tokens:
            return prompt, max(1, round(expected))
        limit = self._limits.get(group)
        if limit is not None and limit.better:
            expected = min(limit.share.value * min(job.max_tokens, _MOST_OUTPUT_TOKENS), _MOST_OUTPUT_TOKENS)
        return prompt, min(max(1, round(expected)), job.max_tokens)

    def observe(self, job: InFlight, prompt_tokens: int, output_tokens: int) -> bool:
        """Learn from a job that ended, and its true lengths in tokens (0 where it failed).

        True where a mean moved so far that predictions should be made anew.
        """
        if prompt_tokens <= 0 or job.body_bytes <= 0:
            return False
        output_tokens = min(output_tokens, job.max_tokens or _MOST_OUTPUT_TOKENS)
        self._missed.observe(abs(job.output_tokens - output_tokens))
        self.tokens_per_byte.observe(min(prompt_tokens / job.body_bytes, _MOST_TOKENS_PER_BYTE))
        batch = job.job_id.rpartition(".")[0]
        group = _group(batch, job.body_bytes, job.max_tokens)
        before = self._output(group)
        if job.max_tokens:
            self._limit(group).observe(output_tokens, job.max_tokens, min(before, job.max_tokens))
        self._expected.clear()
        self.output_tokens.observe(output_tokens)
        for name in (_all_of(batch), group):
            self._mean(name).observe(output_tokens)
        return self._moved(group, before, self._output(group))

    @property
    def error(self) -> float:
        """Mean absolute error of the predicted output tokens over the mean of the true ones; 0 before the first."""
        return self._missed.value / max(self.output_tokens.value, 1.0)

    def _output(self, group: _Group) -> float:
        expected = self.output_tokens.value
        for name in (_all_of(group[0]), group):
            mean = self._groups.get(name)
            if mean is not None:
                expected = (mean.count * mean.value + _PRIOR_JOBS * expected) / (mean.count + _PRIOR_JOBS)
        return expected

    def _mean(self, name: _Group) -> Mean:
        mean = self._groups.get(name)
        if mean is None:
            mean = self._groups[name] = Mean(self.output_tokens.value)
            while len(self._groups) > _GROUPS:
                self._used.pop(self._groups.popitem(last=False)[0], None)
        self._groups.move_to_end(name)
        return mean

    def _limit(self, group: _Group) -> LimitShare:
        limit = self._limits.get(group)
        if limit is None:
            limit = self._limits[group] = LimitShare()
            while len(self._limits) > _GROUPS:
                self._limits.popitem(last=False)
        return limit

    def _moved(self, group: _Group, before: float, expected: float) -> bool:
        used = self._used.setdefault(group, before)
        if abs(expected - used) <= _MOVED * used:
            return False
        self._used[group] = expected
        return True


def _group(batch: str, body_bytes: int, max_tokens: int) -> _Group:
    """Jobs of one batch with bodies of about the same size and the same order of ``max_tokens``."""
    return batch, body_bytes.bit_length(), max_tokens.bit_length()


def _all_of(batch: str) -> _Group:
    return batch, -1, -1
