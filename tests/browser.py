"""A headless Chromium, driven by its own DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from child_processes import start_process
from cluster_fixtures import PATIENCE_S, eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)

#: What is visible, and the whole of names that may be cut.
_TEXT = """
document.body
  ? [document.body.innerText,
     ...[...document.querySelectorAll("main .cut")].map((name) => name.textContent)].join("\\n")
  : ""
"""


@dataclass(slots=True)
class Page:
    """One tab. ``problems``: what its console says is wrong."""

    socket: aiohttp.ClientWebSocketResponse
    problems: list[str] = field(default_factory=list[str])
    _answers: dict[int, asyncio.Future[dict[str, Any]]] = field(
        default_factory=dict[int, "asyncio.Future[dict[str, Any]]"]
    )
    _asked: int = 0

    async def listen(self) -> None:
        """Take in answers and what the console says, until the tab is closed."""
        async for message in self.socket:
            said = json.loads(message.data)
            if (answer := self._answers.pop(said.get("id", 0), None)) is not None:
                answer.set_result(said)
            elif said.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(said["params"]["exceptionDetails"]))
            elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.problems.append(said["params"]["entry"]["text"])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol."""
        self._asked += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[self._asked] = answer
        await self.socket.send_json({"id": self._asked, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE_S):
            said = await answer
        assert "error" not in said, (method, said)
        return said["result"]

    async def evaluate(self, script: str) -> Any:
        """What JavaScript gives in the tab."""
        said = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, (script, said)
        return said["result"].get("value")

    async def go(self, url: str) -> None:
        """Open an address."""
        await self.call("Page.navigate", url=url)

    async def see(self, width: int, height: int, *, dark: bool = False) -> None:
        """Have a screen of this size, in pixels, and this colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def shows(self, *texts: str) -> None:
        """Wait until the page has these texts, visible."""

        async def all_there() -> bool:
            seen = await self.text()
            return all(text in seen for text in texts)

        await eventually(all_there, f"the page shows {texts}")

    async def text(self) -> str:
        """All text that is visible; a name that is cut is one word, as it is told in full."""
        return str(await self.evaluate(_TEXT))

    async def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen as a PNG; ``whole``: all of the page, not just the screen."""
        said = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(said["data"]))


@asynccontextmanager
async def browser(folder: Path) -> AsyncGenerator[Page]:
    """A tab of a browser of its own, without anything of another's; ``folder`` is empty."""
    assert CHROMIUM is not None
    process = await start_process(
        CHROMIUM,
        *_FLAGS,
        f"--user-data-dir={folder}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port = await eventually(lambda: _port_of(folder), "the browser listens")
        async with aiohttp.ClientSession() as http:
            tabs = await (await http.get(f"http://127.0.0.1:{port}/json/list")).json()
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with http.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.ensure_future(page.listen())
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                yield page
                listening.cancel()
    finally:
        process.kill()
        await process.wait()


def _port_of(folder: Path) -> str:
    path = folder / "DevToolsActivePort"
    lines = path.read_text().splitlines() if path.exists() else []
    return lines[0] if len(lines) >= 2 else ""
