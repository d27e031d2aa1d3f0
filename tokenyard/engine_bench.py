"""A started engine as the profiler drives it: requests of given lengths, and the steps where the engine tells them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

import orjson

from broker.engine_steps import EngineStep
from planner.measured_steps import Lengths
from planner.profiler import ProfilingError
from workers.engines.base import Engine, EngineRequest, EngineResponse

_URL = "/v1/completions"
# Ids that are common tokens in every large vocabulary: past the bytes and the control tokens.
_FIRST_TOKEN, _LAST_TOKEN = 1_000, 20_000
_MESSAGE_CHARS = 300
#: Words that are a token each, with the space before, in most vocabularies.
_WORDS = ("the", "of", "and", "to", "in", "is", "was", "for", "on", "that", "with", "as", "by", "at", "from", "it")


class EngineBench:
    """See ``planner.profiler.Bench``. Prompts are random tokens: no prefix cache knows them."""

    def __init__(self, engine: Engine, model: str, steps: list[EngineStep]) -> None:
        """Wrap an engine.

        Args:
            model: the name that requests call its model by.
            steps: where the engine's steps are appended; stays empty for an engine that does not tell them.
        """
        self._engine = engine
        self._model = model
        self._steps = steps
        self._random = random.Random()
        self._numbers: Iterator[int] = count()

    async def run(self, request: Lengths) -> Lengths:
        """Run one request.

        Raises:
            ProfilingError: the engine refused it.
            EngineUnavailableError: the engine died.
        """
        prompt = [self._random.randrange(_FIRST_TOKEN, _LAST_TOKEN) for _ in range(request.prompt)]
        return await self._run(prompt, request)

    async def run_text(self, request: Lengths) -> Lengths:
        """The same with a prompt of about that length that is text, which the engine has to tokenize as at work.

        Raises:
            ProfilingError: the engine refused it.
            EngineUnavailableError: the engine died.
        """
        return await self._run(" ".join(self._random.choices(_WORDS, k=request.prompt)), request)

    async def _run(self, prompt: str | list[int], request: Lengths) -> Lengths:
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": request.output,
            "ignore_eos": True,
            "temperature": 0,
        }
        response = await self._engine.run(EngineRequest(f"profile-{next(self._numbers)}", _URL, orjson.dumps(body)))
        if response.status_code != 200:
            raise ProfilingError(f"the engine refuses what it is to be measured with: {_message(response)}")
        return Lengths(response.prompt_tokens or request.prompt, response.output_tokens or request.output)

    def take_steps(self) -> list[EngineStep]:
        """The engine's steps since the last call."""
        taken = self._steps[:]
        self._steps.clear()
        return taken


def _message(response: EngineResponse) -> str:
    try:
        said = orjson.loads(response.body)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        said = response.body.decode(errors="replace")
    return " ".join(str(said).split())[:_MESSAGE_CHARS]
