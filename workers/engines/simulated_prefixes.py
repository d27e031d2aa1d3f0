"""What a simulated engine's prompts begin with: prefixes that its prefix cache may find again. Pure."""

from __future__ import annotations

from broker.prefixes import prefix_marks
from workers.engines.simulated_wire import BYTES_PER_TOKEN, KINDS, Work

_URLS = {kind: url for url, kind in KINDS.items()}

#: Beginnings of a prompt, short to long: what names each, and its tokens.
Prefixes = list[tuple[str, int]]


def declared_prefixes(work: Work) -> list[Prefixes]:
    """The prefixes of each prompt. A real engine compares all of a prompt; here only its marks can be found again."""
    if work.kind == "embedding":
        return [[] for _ in work.prompts]
    url = _URLS[work.kind]
    prompts = work.body.get("prompt")
    if isinstance(prompts, list) and prompts and isinstance(prompts[0], str):
        return [_prefixes(url, {**work.body, "prompt": prompt}) for prompt in prompts]
    if isinstance(prompts, list):  # tokens, which have no bytes
        return [[] for _ in work.prompts]
    return [_prefixes(url, work.body)]


def _prefixes(url: str, body: dict[str, object]) -> Prefixes:
    return [(mark.digest, mark.size // BYTES_PER_TOKEN) for mark in prefix_marks(url, body)]
