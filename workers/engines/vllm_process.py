"""The process around a vLLM engine: its cores, its environment, its stderr, and the end of its children.

Nothing here imports vLLM: most of it must be done before vLLM is imported.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from workers.engines.base import EngineStartError
from workers.engines.vllm_options import VllmOptions

_CORE_SPAN = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?")
_ERROR_LINE = re.compile(r"\b[A-Za-z_][\w.]*(?:Error|Exception): (?P<message>\S.*)")
# What vLLM's outer processes say about the failure of an inner one: never the cause.
_WRAPPERS = ("Engine core initialization failed", "WorkerProc initialization failed")
_ENGINE_PREFIX = re.compile(r"^\((?:EngineCore|Worker|VllmWorker)[^)]*\)")
# What Python's multiprocessing prints over the traceback of a process that died.
_DEATH_NOTICE = re.compile(r"^Process \S+:$")
_MESSAGE_CHARS = 400


def check_model(model: str) -> None:
    """Refuse at once what vLLM would take half a minute to refuse."""
    path = Path(model)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "params.json")):
            raise EngineStartError(f"{model} is not a model: there is no config.json in that directory")
    elif not path.exists() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise EngineStartError(f"model {model}: no such directory")
    if importlib.util.find_spec("vllm") is None:
        raise EngineStartError("vLLM is not installed: install `tokenyard[gpu]`, or `tokenyard[cpu]` without a GPU")


def prepare_process(options: VllmOptions) -> None:
    """Set what vLLM reads when it is imported, and keep this process on its cores."""
    defaults = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
        # A fork would copy the locks of this process's threads, and the pipe that only it may hold.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if Path(options.model).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    if options.cores is not None:
        pin_to_cores(parse_cores(options.cores))
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = options.cores  # read by CPU engines only
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def parse_cores(text: str) -> set[int]:
    """Return the CPU numbers of a list such as ``0``, ``0-3`` or ``0,2-4`` (ranks separated by ``|``).

    Raises:
        EngineStartError: it is no such list, or this process may not use one of them.
    """
    cores: set[int] = set()
    for part in text.replace("|", ",").split(","):
        span = _CORE_SPAN.fullmatch(part)
        if span is None:
            raise EngineStartError(f"cores {text!r}: expected a list such as 0 or 0-3 or 0,2-4")
        cores.update(range(int(span["first"]), int(span["last"] or span["first"]) + 1))
    allowed = available_cores()
    if not cores or not cores <= allowed:
        raise EngineStartError(f"cores {text!r}: this process may use only {sorted(allowed)}")
    return cores


def available_cores() -> set[int]:
    """Return the CPU numbers this process may run on."""
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def pin_to_cores(cores: Iterable[int]) -> None:
    """Keep every thread of this process, and all it starts from now on, on these CPUs (Linux only)."""
    if sys.platform != "linux":
        return
    wanted = set(cores)
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it ended since it was listed
            os.sched_setaffinity(int(thread.name), wanted)


def one_line(error: BaseException) -> str:
    """Return what an exception says, on one line and without pydantic's trimmings."""
    if isinstance(error, ValidationError):
        said = (": ".join([*map(str, detail["loc"][-1:]), detail["msg"]]) for detail in error.errors())
        return _shorten("; ".join(dict.fromkeys(said)))
    return _shorten(str(error) or type(error).__name__)


def root_cause(lines: Iterable[str]) -> str | None:
    """Return the message of the first exception in what the engine's processes printed, if there is one.

    The first is the innermost: the processes around it raise theirs afterwards.
    """
    for line in lines:
        found = _ERROR_LINE.search(line)
        if found and not any(wrapper in line for wrapper in _WRAPPERS):
            return _shorten(found["message"])
    return None


def _shorten(text: str) -> str:
    text = " ".join(text.split()).replace("Value error, ", "")
    return text if len(text) <= _MESSAGE_CHARS else text[: _MESSAGE_CHARS - 3] + "..."


class StderrRelay:
    """Reads the stderr of the processes started inside the ``with`` block, for as long as they live.

    Passes it on to the real stderr. What the engine's processes say while they start is held back until
    ``release``, so that a failed start can be told in one line instead of their tracebacks.
    """

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=1000)
        # Who asks for more of vLLM's log than warnings wants to see it all, at once.
        quiet = os.environ.get("VLLM_LOGGING_LEVEL", "") in ("WARNING", "ERROR")
        self._held: list[bytes] | None = [] if quiet else None
        self._died = False
        self._lock = threading.Lock()
        self._real = -1
        self._pump: threading.Thread | None = None

    def __enter__(self) -> StderrRelay:
        sys.stderr.flush()
        self._real = os.dup(2)
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        self._pump = threading.Thread(target=self._relay, args=(reader,), name="engine-stderr", daemon=True)
        self._pump.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stderr.flush()
        os.dup2(self._real, 2)

    def _relay(self, reader: int) -> None:
        with os.fdopen(reader, "rb") as stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                with self._lock:
                    self.lines.append(text)
                    self._died = self._died or bool(_DEATH_NOTICE.match(text))
                    if self._held is not None and (self._died or _ENGINE_PREFIX.match(text)):
                        self._held.append(line)
                        continue
                with suppress(OSError):
                    os.write(self._real, line)

    def release(self) -> None:
        """Print what was held back, and hold nothing back from now on."""
        with self._lock:
            held, self._held = self._held or [], None
        for line in held:
            with suppress(OSError):
                os.write(self._real, line)

    def drain(self) -> list[str]:
        """Return all that was printed, once its writers are gone (or after two seconds)."""
        if self._pump is not None:
            self._pump.join(timeout=2)
        with self._lock:
            return list(self.lines)


class OrphanGuard:
    """Kills the engine's processes when this process dies, however it dies.

    vLLM's engine core does not notice that the process it serves was killed: it would hold its device for
    good. A shell of its own session waits for the end of a pipe that only this process holds open.
    """

    _SCRIPT = 'pids=; while read -r pid; do pids="$pids $pid"; done; kill -KILL $pids'

    def __init__(self) -> None:
        self._watched: set[int] = set()
        self._shell = subprocess.Popen(  # noqa: S603 - a constant script
            ["/bin/sh", "-c", self._SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """Have this process killed when ours dies."""
        if pid in self._watched or self._shell.stdin is None:
            return
        self._watched.add(pid)
        with suppress(BrokenPipeError):  # somebody killed the guard: run on without it
            self._shell.stdin.write(b"%d\n" % pid)
            self._shell.stdin.flush()

    def close(self) -> None:
        """End the guard; the watched processes are left alone."""
        self._shell.kill()
        self._shell.wait()
        if self._shell.stdin is not None:
            with suppress(BrokenPipeError):
                self._shell.stdin.close()
