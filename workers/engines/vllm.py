"""vLLM in this process: AsyncLLM makes the tokens, vLLM's own serving layer the response bodies.

With `vllm_serving` the only module that imports vLLM, and only where it is used: this one is cheap to import.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from typing import Any, NoReturn

import psutil

from broker.engine_steps import EngineStep
from workers.engines.base import (
    Capacity,
    EngineRequest,
    EngineResponse,
    EngineStartError,
    EngineUnavailableError,
    Load,
    Tell,
)
from workers.engines.cpu_precision import cpu_dtype
from workers.engines.vllm_counters import VllmCounters
from workers.engines.vllm_options import VllmOptions
from workers.engines.vllm_process import (
    OrphanGuard,
    StderrRelay,
    available_cores,
    check_model,
    one_line,
    prepare_process,
    root_cause,
)
from workers.engines.vllm_serving import Endpoint, answer, failure, make_endpoints, refusal

__all__ = ["VllmEngine", "VllmOptions"]

log = logging.getLogger(__name__)

_CHILD_POLL_S = 0.2
#: Its processes hold nothing that is worth a wait; what has not ended by then is killed.
_SHUTDOWN_S = 0.5

# vLLM's types are partial and move between releases: its objects are Any, in this module alone.
_Llm = Any
_Arguments = Any


class VllmEngine:
    """One vLLM engine, its core in a child process. See ``workers.engines.base.Engine``."""

    def __init__(self, options: VllmOptions, observe: Callable[[EngineStep], None] | None = None) -> None:
        """Start nothing yet.

        Args:
            observe: told about every step, where the options ask for ``enable-logging-iteration-details``.
        """
        self._options = options
        self._observe = observe
        self._llm: _Llm = None
        self._building: asyncio.Future[_Arguments] | None = None
        self._stopping = False
        self._guard: OrphanGuard | None = None
        self._endpoints: dict[str, Endpoint] = {}
        self._counters = VllmCounters(self._observe)
        self._kv_tokens = 0
        self._free_memory: Callable[[], int] = _host_memory
        self._in_flight = 0

    async def start(self) -> Capacity:
        """Load the model and return what fits.

        Raises:
            EngineStartError: vLLM is not installed, or refuses; the message is one line with its reason.
        """
        check_model(self._options.model)
        prepare_process(self._options)
        self._stopping = False
        self._counters = VllmCounters(self._observe)
        self._guard = OrphanGuard()
        relay = StderrRelay()
        try:
            with relay:
                arguments = await self._build_watched(self._guard)
            relay.release()
            self._endpoints = await make_endpoints(self._llm, arguments)
        except EngineStartError:
            raise
        except Exception as error:
            reason = root_cause(relay.drain()) or one_line(error)
            raise EngineStartError(f"vLLM cannot start {self._options.model}: {reason}") from error
        # What was imported and loaded lives as long as the worker: keep it out of every garbage collection.
        gc.collect()
        gc.freeze()
        capacity = self._measure_capacity()
        if capacity.device.startswith("cpu ") and capacity.dtype != "float32" and cpu_dtype() == "float32":
            log.warning("this CPU has no instructions for %s: --dtype float32 is several times faster", capacity.dtype)
        return capacity

    async def _build_watched(self, guard: OrphanGuard) -> _Arguments:
        """Build in a thread, so that the worker goes on saying that it lives, and guard the children."""
        self._building = asyncio.ensure_future(asyncio.to_thread(self._build))
        while not self._building.done():
            await asyncio.wait({self._building}, timeout=_CHILD_POLL_S)
            for child in multiprocessing.active_children():
                if child.pid is not None:
                    guard.watch(child.pid)
        return self._building.result()

    def _build(self) -> _Arguments:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.run_batch import validate_run_batch_args
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = _parse_flags(self._options.flags())
        validate_run_batch_args(arguments)
        # vLLM's defaults for offline work: more seats and larger steps than its server's.
        context = UsageContext.LLM_CLASS
        config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config(context)
        if current_platform.is_cpu() and self._options.enforce_eager:
            # Else the first request for logprobs compiles a kernel, which stalls all others for seconds, and
            # takes the engine down where there is no C++ compiler.
            os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        if self._stopping:
            raise EngineStartError("stopped while starting")
        counters: Any = lambda _config, _index: self._counters  # noqa: E731 - typed as what vLLM takes
        # Children inherit the mask: a Ctrl-C meant for the worker must not end its engine under its requests.
        # The resource tracker, where it is first needed, would lift it.
        resource_tracker.ensure_running()
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            # Never in a variable here: vLLM's imports keep this frame for good, and its engine would be with it.
            self._llm = AsyncLLM.from_vllm_config(
                config, usage_context=context, stat_loggers=[counters], disable_log_stats=True
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        return arguments

    def _measure_capacity(self) -> Capacity:
        from vllm import __version__

        config = self._llm.vllm_config
        devices: int = config.parallel_config.world_size
        device, self._free_memory = _look_at_device(devices)
        # One block of every engine core is vLLM's placeholder and never holds a token.
        blocks = (config.cache_config.num_gpu_blocks or 0) - config.parallel_config.data_parallel_size
        self._kv_tokens = max(blocks, 0) * config.cache_config.block_size
        return Capacity(
            device=device,
            model=self._options.names[0],
            kv_tokens=self._kv_tokens,
            seats=config.scheduler_config.max_num_seqs,
            context_tokens=config.model_config.max_model_len,
            version=f"vllm {__version__}",
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            tensor_parallel=config.parallel_config.tensor_parallel_size,
            max_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            variant=_variant(config),
        )

    async def run(self, request: EngineRequest) -> EngineResponse:
        """Run one request to its end. Cancelling the call aborts the request in the engine.

        Raises:
            EngineUnavailableError: the engine is not running, or died under the request.
        """
        return await self._run(request, None)

    async def run_telling(self, request: EngineRequest, tell: Tell) -> EngineResponse:
        """As ``run``, and tell the answer as it comes.

        Raises:
            EngineUnavailableError: the engine is not running, or died under the request.
        """
        return await self._run(request, None if request.url == "/v1/embeddings" else tell)

    async def _run(self, request: EngineRequest, tell: Tell | None) -> EngineResponse:
        if not self._endpoints:
            raise EngineUnavailableError("the vLLM engine is not running")
        endpoint = self._endpoints.get(request.url)
        if endpoint is None:
            served = ", ".join(self._endpoints)
            return refusal(f"this model does not serve {request.url}; it serves {served}", "url", 404)
        self._in_flight += 1
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            response = await answer(endpoint, request, tell)
        except EngineUnavailableError:
            raise
        except Exception as error:
            if self._llm is None:
                raise EngineUnavailableError("the vLLM engine was stopped") from error
            if self._llm.errored:
                raise EngineUnavailableError("vLLM's engine process died") from error
            response = failure(error, request.job_id)
        finally:
            self._in_flight -= 1
        # vLLM's serving layer aborts a cancelled request, but then answers as if it had not been cancelled.
        if task and task.cancelling() > cancels:
            raise asyncio.CancelledError
        return response

    def load(self) -> Load:
        """The engine's load as of its last step.

        Raises:
            EngineUnavailableError: its process died.
        """
        if self._llm is not None and self._llm.errored:
            raise EngineUnavailableError("vLLM's engine process died")
        # vLLM speaks after a step only: when nothing is in flight, what it said last is history.
        busy = self._in_flight > 0
        running = self._counters.running if busy else 0
        return Load(
            running=running,
            waiting=max(self._counters.waiting, self._in_flight - running) if busy else 0,
            kv_tokens_used=round(self._counters.kv_usage * self._kv_tokens) if busy else 0,
            prompt_tokens_total=self._counters.prompt_tokens,
            output_tokens_total=self._counters.output_tokens,
            free_memory_bytes=self._free_memory(),
            steps_total=self._counters.steps,
        )

    async def stop(self) -> None:
        """Shut the engine's processes down; requests still running end with EngineUnavailableError."""
        self._stopping = True
        while self._building is not None and not self._building.done():
            for child in multiprocessing.active_children():
                child.kill()
            await asyncio.wait({self._building}, timeout=_CHILD_POLL_S)
        if self._building is not None:
            self._building.exception()  # looked at, or asyncio complains that nobody did
        self._endpoints = {}
        llm, self._llm = self._llm, None
        if llm is not None:
            if llm.output_handler is not None:
                llm.output_handler.cancel()
            llm.output_processor.propagate_error(EngineUnavailableError("the vLLM engine was stopped"))
            await asyncio.to_thread(llm.shutdown, _SHUTDOWN_S)
        gc.unfreeze()
        if self._guard is not None:
            self._guard.close()
            self._guard = None


def _parse_flags(flags: list[str]) -> _Arguments:
    """Read the flags with vLLM's own parser, so that every default is vLLM's."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import BaseFrontendArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise EngineStartError(f"vLLM does not take these engine options: {' '.join(message.split())}")

    return AsyncEngineArgs.add_cli_args(BaseFrontendArgs.add_cli_args(Parser())).parse_args(flags)


def _variant(config: Any) -> str:
    """What decides the speed of an engine beside what its capacity names."""
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    said = {
        "eager": model.enforce_eager,
        f"{model.quantization}": model.quantization is not None,
        f"kv {cache.cache_dtype}": cache.cache_dtype != "auto",
        f"pp {parallel.pipeline_parallel_size}": parallel.pipeline_parallel_size > 1,
        f"dp {parallel.data_parallel_size}": parallel.data_parallel_size > 1,
        "speculative": config.speculative_config is not None,
    }
    return ", ".join(word for word, holds in said.items() if holds)


def _look_at_device(devices: int) -> tuple[str, Callable[[], int]]:
    """Return what the device is called, and how to ask for its free memory in bytes."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return f"cpu x{len(available_cores())}", _host_memory
    name = current_platform.get_device_name() + (f" x{devices}" if devices > 1 else "")
    if not current_platform.is_cuda():
        import torch

        return name, lambda: sum(torch.cuda.mem_get_info(index)[0] for index in range(devices))
    # NVML, as asking through torch would put a CUDA context of this process on the device.
    from vllm.third_party import pynvml

    pynvml.nvmlInit()
    physical = [current_platform.device_id_to_physical_device_id(index) for index in range(devices)]
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in physical]
    return name, lambda: sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles)


def _host_memory() -> int:
    return psutil.virtual_memory().available
