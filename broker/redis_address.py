"""Addresses of Redis: one server, one behind Sentinels, or a Cluster. Pure.

==========================================================  =====================================================
``redis://[USER:PASSWORD@]HOST[:PORT][/DB][?OPTIONS]``      one server; ``rediss://`` with TLS, ``unix://`` by socket
``redis+sentinel://[…@]HOST[:PORT],…/SERVICE[/DB][?…]``     the master of that name, as these Sentinels know it
``redis+cluster://[…@]HOST[:PORT],…[?OPTIONS]``             a Cluster, found through any of these nodes
==========================================================  =====================================================

``rediss+sentinel`` and ``rediss+cluster`` with TLS. User and password are those of the servers; Sentinels that want one
get ``sentinel_username`` and ``sentinel_password`` of the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from broker.errors import RedisUnavailableError, UsageError

Kind = Literal["sentinel", "cluster"]
Node = tuple[str, int]

_DEFAULT_PORTS: dict[Kind, int] = {"sentinel": 26379, "cluster": 6379}
_SENTINEL_OPTIONS = {"sentinel_username": "username", "sentinel_password": "password"}


@dataclass(frozen=True, slots=True)
class ManyServers:
    """An address of several servers.

    Attributes:
        kind: what they are.
        nodes: host and port of each.
        service: name of the master that the Sentinels watch; empty for a Cluster.
        one: an address of one server with the same user, password, database, TLS and options.
        sentinel_options: user and password of the Sentinels.
    """

    kind: Kind
    nodes: tuple[Node, ...]
    service: str
    one: str
    sentinel_options: dict[str, str]


def many_servers(url: str) -> ManyServers | None:
    """An address of several servers, taken apart; None where it is one of a single server.

    Raises:
        RedisUnavailableError: it cannot be read; the message holds no password.
    """
    scheme, _, kind = urlsplit(url).scheme.partition("+")
    if kind == "sentinel":
        return _sentinel(url, scheme)
    if kind == "cluster":
        return _cluster(url, scheme)
    if kind:
        raise _unreadable("it begins with redis+sentinel:// or redis+cluster://, or with redis://, rediss://, unix://")
    return None


def without_password(url: str) -> str:
    """The address for messages."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    if "+" in parts.scheme:
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"


def with_options(url: str, options: Mapping[str, str]) -> str:
    """The address with these options in place of its own of the same names.

    Raises:
        UsageError: it is none with TLS, and the options are of no use.
    """
    parts = urlsplit(url)
    if not parts.scheme.startswith("rediss"):
        raise UsageError("certificates are for TLS: begin TOKENYARD_REDIS_URL with rediss://, or take them out")
    return parts._replace(query=urlencode({**dict(parse_qsl(parts.query)), **options})).geturl()


def tls_options(url: str) -> dict[str, bool]:
    """What redis-py leaves out: the certificate must be that of the host, unless the address says otherwise."""
    parts = urlsplit(url)
    said = dict(parse_qsl(parts.query))
    checks = parts.scheme.startswith("rediss") and said.get("ssl_cert_reqs", "required") == "required"
    return {"ssl_check_hostname": True} if checks and "ssl_check_hostname" not in said else {}


def _sentinel(url: str, scheme: str) -> ManyServers:
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise _unreadable("after the Sentinels comes the name of their master: redis+sentinel://HOST:PORT/SERVICE")
    query = dict(parse_qsl(parts.query))
    options = {name: query.pop(key) for key, name in _SENTINEL_OPTIONS.items() if key in query}
    one = _one(scheme, parts.netloc, f"/{database}" if database else "", query)
    return ManyServers("sentinel", _nodes(parts.netloc, "sentinel"), service, one, options)


def _cluster(url: str, scheme: str) -> ManyServers:
    parts = urlsplit(url)
    if parts.path.strip("/") not in ("", "0"):
        raise _unreadable("a Cluster has no databases: leave out what follows its nodes")
    one = _one(scheme, parts.netloc, "", dict(parse_qsl(parts.query)))
    return ManyServers("cluster", _nodes(parts.netloc, "cluster"), "", one, {})


def _one(scheme: str, netloc: str, path: str, query: dict[str, str]) -> str:
    if scheme not in ("redis", "rediss"):
        raise _unreadable("it begins with redis+ or, for TLS, with rediss+")
    user, at, _ = netloc.rpartition("@")
    return f"{scheme}://{user}{at}localhost{path}?{urlencode(query)}"


def _nodes(netloc: str, kind: Kind) -> tuple[Node, ...]:
    return tuple(_node(text, kind) for text in netloc.rpartition("@")[2].split(","))


def _node(text: str, kind: Kind) -> Node:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise _unreadable(f"{text!r}: {e}") from None
    if not host:
        raise _unreadable("the name of a host is missing")
    return host, port or _DEFAULT_PORTS[kind]


def _unreadable(why: str) -> RedisUnavailableError:
    return RedisUnavailableError(f"TOKENYARD_REDIS_URL is not an address: {why}")
