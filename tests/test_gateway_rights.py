"""The gateway with no more rights in Redis than `tokenyard acl` gives its role."""

from __future__ import annotations

from pathlib import Path

from acl_server import acl_server
from cluster_fixtures import Cluster, instant_engine
from gateway_fixtures import openai_of, serving
from test_acl import POOL, RoleCluster

from broker.acl import Role
from tokenyard.embedded_server import find_binary
from tokenyard.gateway.api_keys import read_keys


async def test_a_gateway_serves_tenants_and_metrics_with_its_own_rights(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("acme acme-key-0123456789\ndefault default-key-012345\n")
    async with acl_server(find_binary(), tmp_path, POOL) as server:
        cluster: Cluster = RoleCluster(server)
        cluster.schedule()
        await cluster.join("w", instant_engine(cluster.model))
        cluster.url = server.url_of(Role.GATEWAY)
        async with serving(cluster, tmp_path / "shelves", read_keys(keys)) as url:
            for key in ("acme-key-0123456789", "default-key-012345"):
                async with openai_of(url, key) as client:
                    stream = await client.chat.completions.create(
                        model=cluster.model, messages=[{"role": "user", "content": "Hi."}], stream=True
                    )
                    assert [chunk async for chunk in stream][-1].choices[0].finish_reason
                    root = str(client.base_url).removesuffix("/v1/")
                    page = await client.get(f"{root}/metrics", cast_to=str)
                    assert f'tokenyard_ready_workers{{pool="{POOL}"}} 1.0' in page
        await cluster.close()
