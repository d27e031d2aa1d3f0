"""The official client's files and batches against a gateway that is served."""

from __future__ import annotations

import io
from pathlib import Path

import openai
import pytest
from cluster_fixtures import Cluster, ManualEngine, eventually, instant_engine
from gateway_fixtures import (
    client_fixture,
    cluster_fixture,
    in_status,
    lines_of,
    make_batch,
    openai_of,
    request_line,
    serving,
    upload,
)
from openai import AsyncOpenAI
from openai.types import Batch

from tokenyard.gateway.api_keys import ApiKeys, read_keys

#: pytest finds them among the module's names.
__all__ = ["client_fixture", "cluster_fixture"]


class TestFiles:
    async def test_a_file_from_upload_to_deletion(self, client: AsyncOpenAI) -> None:
        content = b'{"a": 1}\n' * 1000
        made = await client.files.create(file=("dir/in.jsonl", io.BytesIO(content)), purpose="batch")
        assert (made.filename, made.bytes, made.purpose) == ("in.jsonl", len(content), "batch")
        assert await client.files.retrieve(made.id) == made
        assert (await client.files.content(made.id)).content == content
        assert [file.id async for file in client.files.list()] == [made.id]
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(made.id)
        assert [file.id async for file in client.files.list()] == []

    async def test_lists_are_paged(self, client: AsyncOpenAI) -> None:
        made = {await upload(client, str(number)) for number in range(5)}
        assert {file.id async for file in client.files.list(limit=2)} == made
        assert [file.id async for file in client.files.list(purpose="batch_output")] == []

    async def test_an_empty_file(self, client: AsyncOpenAI) -> None:
        made = await client.files.create(file=("in.jsonl", b""), purpose="batch")
        assert made.bytes == 0
        assert (await client.files.content(made.id)).content == b""

    async def test_bad_uploads(self, client: AsyncOpenAI, tmp_path: Path) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.files.create(file=("in.jsonl", b"x"), purpose="cooking")  # type: ignore[arg-type]
        assert caught.value.param == "purpose"
        with pytest.raises(openai.BadRequestError):
            await client.post("/files", cast_to=object, body={"file": "no form"})
        assert list((tmp_path / "default" / "files").iterdir()) == []

    @pytest.mark.parametrize("file_id", ["file-x", "file-" + "0" * 24, "..", "%2e%2e%2fkeys"])
    async def test_an_id_is_no_path(self, client: AsyncOpenAI, file_id: str) -> None:
        with pytest.raises(openai.NotFoundError):
            await client.get(f"/files/{file_id}/content", cast_to=object)


class TestBatches:
    async def test_a_batch_runs_to_its_end(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        bad = request_line(cluster.model, "bad", body={"model": cluster.model, "messages": [], "max_tokens": 3})
        file_id = await upload(client, *(request_line(cluster.model, f"r{n}") for n in range(30)), bad)
        made = await make_batch(client, file_id, metadata={"night": "1"})
        assert made.status == "validating"
        batch = await in_status(client, made.id, "completed")
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 31, "completed": 30, "failed": 1}
        assert batch.metadata == {"night": "1"}
        assert batch.usage is not None
        assert batch.usage.output_tokens > 0
        rows = await lines_of(client, batch.output_file_id)
        assert sorted(row["custom_id"] for row in rows) == sorted(f"r{n}" for n in range(30))
        assert {row["response"]["status_code"] for row in rows} == {200}
        [failed] = await lines_of(client, batch.error_file_id)
        assert failed["response"]["status_code"] == 400
        assert [b.id async for b in client.batches.list()] == [made.id]
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(made.id)

    async def test_a_batch_is_cancelled(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        engine = ManualEngine()
        await cluster.join("w", engine)
        file_id = await upload(client, *(request_line(cluster.model, f"r{n}") for n in range(10)))
        made = await make_batch(client, file_id)
        await eventually(lambda: engine.running)
        assert (await client.batches.cancel(made.id)).status == "cancelling"
        batch = await in_status(client, made.id, "cancelled")
        assert batch.cancelled_at is not None
        assert batch.output_file_id is None
        rows = await lines_of(client, batch.error_file_id)
        assert {row["error"]["code"] for row in rows} == {"batch_cancelled"}
        assert len(rows) == 10

    async def test_a_file_with_a_bad_line_runs_nothing(self, cluster: Cluster, client: AsyncOpenAI) -> None:
        await cluster.register_model()
        other = request_line(cluster.model, "c", url="/v1/embeddings", body={"model": cluster.model, "input": "x"})
        unknown = request_line(cluster.model, "d", body={"model": "none", "messages": []})
        file_id = await upload(
            client, request_line(cluster.model, "a"), "{", request_line(cluster.model, "a"), other, unknown
        )
        batch = await in_status(client, (await make_batch(client, file_id)).id, "failed")
        assert batch.errors is not None and batch.errors.data is not None
        assert [(error.line, error.code) for error in batch.errors.data] == [
            (2, "invalid_json_line"),
            (3, "duplicate_custom_id"),
            (4, "mismatched_url"),
            (5, "model_not_found"),
        ]
        assert await cluster.waiting() == 0

    async def test_bad_calls(self, client: AsyncOpenAI) -> None:
        file_id = await upload(client, "{}")
        for changes, param in (
            ({"endpoint": "/v1/cakes"}, "endpoint"),
            ({"completion_window": "soon"}, "completion_window"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                await make_batch(client, file_id, **changes)
            assert caught.value.param == param
        with pytest.raises(openai.NotFoundError):
            await make_batch(client, "file-none")
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve("batch_none")

    async def test_another_gateway_goes_on_after_the_first(self, cluster: Cluster, tmp_path: Path) -> None:
        engine = ManualEngine()
        await cluster.join("w", engine)
        async with serving(cluster, tmp_path) as url, openai_of(url) as client:
            file_id = await upload(client, *(request_line(cluster.model, f"r{n}") for n in range(6)))
            made = await make_batch(client, file_id)
            await eventually(lambda: engine.running)
            engine.finish()
        async with serving(cluster, tmp_path) as url, openai_of(url) as client:

            async def done() -> Batch | None:
                engine.finish()
                batch = await client.batches.retrieve(made.id)
                return batch if batch.status == "completed" else None

            batch = await eventually(done, "the batch is completed")
            rows = await lines_of(client, batch.output_file_id)
        assert sorted(row["custom_id"] for row in rows) == [f"r{n}" for n in range(6)]
        assert len(engine.started) == 6


class TestKeys:
    async def test_each_tenant_sees_its_own(self, cluster: Cluster, tmp_path: Path) -> None:
        await cluster.join("w", instant_engine(cluster.model))
        keys = tmp_path / "keys"
        keys.write_text("acme acme-key-0123456789  # the first\nbeta beta-key-0123456789\n")
        async with (
            serving(cluster, tmp_path / "shelves", read_keys(keys)) as url,
            openai_of(url, "acme-key-0123456789") as acme,
            openai_of(url, "beta-key-0123456789") as beta,
            openai_of(url, "nobody-s-key-01234") as nobody,
        ):
            file_id = await upload(acme, request_line(cluster.model, "r"))
            made = await make_batch(acme, file_id)
            batch = await in_status(acme, made.id, "completed")
            assert (await lines_of(acme, batch.output_file_id))[0]["response"]["request_id"].startswith("acme:")
            for look in (beta.files.retrieve(file_id), beta.batches.retrieve(made.id)):
                with pytest.raises(openai.NotFoundError):
                    await look
            with pytest.raises(openai.AuthenticationError):
                await nobody.models.list()
            answer = await beta.chat.completions.create(
                model=cluster.model, messages=[{"role": "user", "content": "Hi."}]
            )
            assert answer.id.startswith("chatcmpl-beta:")

    @pytest.mark.parametrize("text", ["", "acme", "acme short", "batch_x key-0123456789abcdef", "a sha256:12"])
    def test_a_bad_file_is_refused(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        path.write_text(text)
        with pytest.raises(Exception, match=str(path)) as caught:
            read_keys(path)
        assert "key-0123456789abcdef" not in str(caught.value)

    def test_a_key_may_be_given_by_its_sum(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        path.write_text("acme sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n")
        assert read_keys(path).tenant_of("Bearer test") == "acme"
        assert len(ApiKeys({})) == 0
