"""The reference: a scheduler that knows every length and the servers' KV memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.routing.workload import Request


class LongestFirst:
    """Each server pulls the longest answer that is left and fits its KV memory to the end.

    The server with the smallest share of its KV memory taken pulls first, so that all fill up alike. The order is
    that of Graham's rule (longest processing time first), and nothing is ever preempted or queued in a server.
    """

    def __init__(self, requests: Sequence[Request], kv_tokens: Sequence[int], in_flight: int) -> None:
        """Start with nothing sent.

        Args:
            requests: in any order.
            kv_tokens: KV cache of each server, tokens.
            in_flight: most requests at once on all servers together.
        """
        self._waiting = sorted(requests, key=lambda request: request.output_tokens, reverse=True)
        self._kv_tokens = list(kv_tokens)
        self._taken = [0] * len(self._kv_tokens)
        self._seats_left = in_flight

    @property
    def waiting(self) -> int:
        """Requests not sent yet."""
        return len(self._waiting)

    def take(self) -> Iterator[tuple[int, Request]]:
        """The requests to send now, each with the place of its server."""
        while self._seats_left and (choice := self._next()) is not None:
            place, index = choice
            request = self._waiting.pop(index)
            self._taken[place] += request.tokens
            self._seats_left -= 1
            yield place, request

    def ended(self, place: int, request: Request) -> None:
        """A request came back from that server."""
        self._taken[place] -= request.tokens
        self._seats_left += 1

    def _next(self) -> tuple[int, int] | None:
        """A server and the index of the request it pulls; None where nothing that is left fits anywhere."""
        for place in sorted(range(len(self._taken)), key=self._share):
            room = self._kv_tokens[place] - self._taken[place]
            for index, request in enumerate(self._waiting):
                if request.tokens <= room:
                    return place, index
        return None

    def _share(self, place: int) -> float:
        return self._taken[place] / self._kv_tokens[place]
