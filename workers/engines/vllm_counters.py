"""What vLLM tells after every step, kept for the worker's heartbeat and passed on to who measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from broker.engine_steps import EngineStep


class VllmCounters:
    """What vLLM tells after every step; it takes this for one of its stat loggers."""

    def __init__(self, observe: Callable[[EngineStep], None] | None) -> None:
        self._observe = observe
        self.running = 0
        self.waiting = 0
        self.kv_usage = 0.0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.steps = 0

    def record(self, scheduler_stats: Any, iteration_stats: Any, **_: Any) -> None:
        """Take in what vLLM tells; called by it."""
        if scheduler_stats is not None:
            self.running = scheduler_stats.num_running_reqs
            self.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            self.kv_usage = scheduler_stats.kv_cache_usage
            if self._observe is not None and scheduler_stats.iteration_details is not None:
                self._observe(_engine_step(scheduler_stats.iteration_details))
        if iteration_stats is not None:
            self.prompt_tokens += iteration_stats.prompt_token_stats.computed
            self.output_tokens += iteration_stats.num_generation_tokens
            self.steps += 1

    def log_engine_initialized(self) -> None:
        """Part of vLLM's interface: nothing to do."""


def _engine_step(details: Any) -> EngineStep:
    """What vLLM's ``SchedulerIterationDetails`` say."""
    elapsed = details.elapsed_ms / 1000
    return EngineStep(time.monotonic(), elapsed, details.num_ctx_tokens, details.num_generation_requests)
