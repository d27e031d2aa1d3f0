"""Choices of OpenAI stream chunks, for an engine without a model. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from workers.engines.simulated_wire import Json, Work, filler, finish_reason


def role_choice(index: int) -> Json:
    """The first choice of a chat: who speaks."""
    delta = {"role": "assistant", "content": ""}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def text_choice(work: Work, index: int, text: str, reason: str | None = None) -> Json:
    """More text of a choice, or (with ``reason``) its end."""
    content: Json = {"delta": {"content": text} if text else {}} if work.kind == "chat" else {"text": text}
    return {"index": index, **content, "logprobs": None, "finish_reason": reason}


def new_choices(work: Work, sent: Sequence[int], tokens: Sequence[int]) -> list[Json]:
    """What is new of each choice, where so many of its tokens were sent before and so many are there now.

    Who speaks is said with the first tokens of all choices, as vLLM says it.
    """
    begins = work.kind == "chat" and not any(sent)
    choices = [role_choice(index) for index in range(len(work.choices))] if begins and any(tokens) else []
    for index, (_, output, cut) in enumerate(work.choices):
        if tokens[index] > sent[index]:
            choices.append(text_choice(work, index, filler(tokens[index] - sent[index])))
            if tokens[index] == output:
                choices.append(text_choice(work, index, "", finish_reason(cut)))
    return choices
