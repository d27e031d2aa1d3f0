"""Real questions as requests of unequal lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson

from benchmarks.cluster import BenchmarkError
from broker.openai_batch import LineError, RequestLine, parse_line

_URL = "/v1/chat/completions"
_EXAMPLES = Path(__file__).parents[2] / "examples" / "questions.jsonl"
_IN_DATA = Path("prompts") / "batch_gsm8k_test.jsonl"
_MAX_LINE_BYTES = 2**20
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Questions:
    """Chats that are to be answered, each with its own limit of output tokens.

    Attributes:
        chats: the messages of each.
        max_tokens: most output tokens of each.
        model: name they ask for.
        whole: every answer is as long as it may be.
    """

    chats: tuple[Any, ...]
    max_tokens: tuple[int, ...]
    model: str
    whole: bool = False

    def __len__(self) -> int:
        return len(self.chats)

    def requests(self, salt: str) -> list[RequestLine]:
        """All of them as requests, which are called by their numbers.

        Args:
            salt: of the engines' prefix caches: what another salt has left there is not found.
        """
        return [self._request(number, salt) for number in range(len(self))]

    def backlog(self, salt: str, copies: int, rng: random.Random, at_once: int) -> list[RequestLine]:
        """All of them ``copies`` times over, in an order of which every stretch has about the same mix of limits.

        Else chance would decide what a worker that gets to a part of them is measured with. The order is that of the
        multiples of the golden ratio's fraction, which fill the unit interval evenly.

        The first ``at_once`` answers are cut to what is left of as many in an engine that has run so many at once for
        a while: they end one after another. Else it would read for a time, then write, then read again.
        """
        found: list[RequestLine] = []
        left = self._left(at_once)
        by_limit = sorted(range(len(self)), key=lambda number: self.max_tokens[number])
        for copy in range(copies):
            start = rng.random()
            places = sorted(range(len(self)), key=lambda place: (start + place * _GOLDEN) % 1)
            for place in places:
                most = left[len(found)] if len(found) < at_once else None
                request = self._request(by_limit[place], f"{salt} {copy}", most)
                found.append(msgspec.structs.replace(request, custom_id=f"{copy}.{request.custom_id}"))
        return found

    def _left(self, at_once: int) -> list[int]:
        """Tokens left of so many answers at a moment, the fewest first.

        Of an answer that is met at any of its tokens, any number is as likely, and a long one is met more often.
        """
        tokens = sorted(left for limit in self.max_tokens for left in range(1, limit + 1))
        return [tokens[(2 * n + 1) * len(tokens) // (2 * at_once)] for n in range(at_once)]

    def _request(self, number: int, salt: str, most: int | None = None) -> RequestLine:
        body = {
            "model": self.model,
            "messages": self.chats[number],
            "max_tokens": self.max_tokens[number] if most is None else most,
            "temperature": 0,
            "cache_salt": salt,
            **({"ignore_eos": True} if self.whole else {}),
        }
        line = {"custom_id": str(number), "method": "POST", "url": _URL, "body": body}
        request = parse_line(orjson.dumps(line), line=number + 1, source=salt, max_bytes=_MAX_LINE_BYTES)
        if isinstance(request, LineError):
            raise BenchmarkError(request.message)
        return request


def read_questions(
    data: Path | None,
    count: int,
    most_tokens: tuple[int, int],
    model: str,
    rng: random.Random,
    *,
    whole: bool = False,
) -> Questions:
    """Draw questions, and a limit of output tokens for each.

    Args:
        data: folder with ``prompts/batch_gsm8k_test.jsonl``; None: the examples', over and over.
        count: how many.
        most_tokens: smallest and largest limit; they are drawn uniformly from between.
        model: name to ask for.
        rng: draws.
        whole: no answer ends before its limit.

    Raises:
        BenchmarkError: the file cannot be read, or is no batch file of chats.
    """
    source = _EXAMPLES if data is None else data / _IN_DATA
    chats = _chats(source)
    rng.shuffle(chats)
    drawn = [chats[number % len(chats)] for number in range(count)]
    return Questions(tuple(drawn), tuple(rng.randint(*most_tokens) for _ in drawn), model, whole)


def _chats(source: Path) -> list[Any]:
    try:
        lines: Sequence[Any] = [orjson.loads(line) for line in source.read_bytes().splitlines() if line.strip()]
        chats = [line["body"]["messages"] for line in lines if line["url"] == _URL]
    except OSError as error:
        raise BenchmarkError(f"cannot read {source}: {error.strerror}: --data names the folder with prompts/") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{source} is no batch file: {error}") from None
    if not chats:
        raise BenchmarkError(f"{source} has no {_URL} requests")
    return chats
