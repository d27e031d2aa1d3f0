"""/v1/embeddings by a worker that makes them, and by one whose model does not."""

from __future__ import annotations

import json

import openai
import pytest
from cluster_fixtures import Cluster, instant_engine
from gateway_fixtures import client_fixture, cluster_fixture, in_status, lines_of, make_batch, request_line, upload
from openai import AsyncOpenAI

from workers.engines.base import EngineRequest, EngineResponse
from workers.engines.simulated import SimulatedEngine

#: pytest finds them among the module's names.
__all__ = ["client_fixture", "cluster_fixture"]
URL = "/v1/embeddings"


class Generates:
    """An engine that generates alone, and says so as vLLM's does."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self.start, self.load, self.stop = engine.start, engine.load, engine.stop

    async def run(self, request: EngineRequest) -> EngineResponse:
        if request.url != URL:
            return await self._engine.run(request)
        error = {"message": f"this model does not serve {URL}", "type": "NotFoundError", "param": "url", "code": 404}
        return EngineResponse(404, json.dumps({"error": error}).encode())


async def test_texts_become_vectors_in_their_order(cluster: Cluster, client: AsyncOpenAI) -> None:
    await cluster.join("w", instant_engine(cluster.model))
    create = client.embeddings.create
    answer = await create(model=cluster.model, input=["a", "bb"])  # the package asks for base64 by itself
    assert [(row.index, len(row.embedding)) for row in answer.data] == [(0, 16), (1, 16)]
    assert answer.usage.prompt_tokens > 0
    [plain] = (await create(model=cluster.model, input="a", encoding_format="float")).data
    assert plain.embedding == pytest.approx(answer.data[0].embedding, rel=1e-5)
    [row] = (await create(model=cluster.model, input="a", extra_body={"stream": True})).data
    assert len(row.embedding) == 16


async def test_a_batch_of_embeddings(cluster: Cluster, client: AsyncOpenAI) -> None:
    await cluster.join("w", instant_engine(cluster.model))
    body = {"model": cluster.model, "input": "x"}
    file_id = await upload(client, *(request_line(cluster.model, f"r{n}", url=URL, body=body) for n in range(5)))
    batch = await in_status(client, (await make_batch(client, file_id, endpoint=URL)).id, "completed")
    rows = await lines_of(client, batch.output_file_id)
    assert {len(row["response"]["body"]["data"][0]["embedding"]) for row in rows} == {16}
    assert len(rows) == 5


async def test_a_model_that_makes_none_says_so(cluster: Cluster, client: AsyncOpenAI) -> None:
    await cluster.join("w", Generates(instant_engine(cluster.model)))
    with pytest.raises(openai.NotFoundError, match="does not serve /v1/embeddings"):
        await client.embeddings.create(model=cluster.model, input="a")
    hello = await client.completions.create(model=cluster.model, prompt="x", max_tokens=2)
    assert hello.choices[0].text


async def test_what_is_no_input_is_refused(cluster: Cluster, client: AsyncOpenAI) -> None:
    await cluster.join("w", instant_engine(cluster.model))
    for wrong in ({}, {"input": 7}):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.post("/embeddings", cast_to=object, body={"model": cluster.model, **wrong})
        assert caught.value.param == "input"
