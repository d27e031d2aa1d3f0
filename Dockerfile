# syntax=docker/dockerfile:1
# Two images from one file: docker build --target cpu .   and   docker build --target gpu .

FROM python:3.12-slim AS base
# libnuma1: vLLM's CPU kernels. gcc and g++: kernels that torch and Triton compile for the machine they find.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv==0.13.9
WORKDIR /app
COPY pyproject.toml README.md ./
COPY requirements requirements
COPY broker broker
COPY workers workers
COPY planner planner
COPY tokenyard tokenyard
RUN useradd --create-home tokenyard \
    && install --directory --owner tokenyard /home/tokenyard/.cache/huggingface /home/tokenyard/gateway
CMD ["tokenyard", "--help"]

FROM base AS cpu
RUN UV_TORCH_BACKEND=cpu uv pip install --system --no-cache \
    --override requirements/cpu-overrides.txt --constraint requirements/constraints-cpu.txt ".[cpu]"
USER tokenyard

FROM base AS gpu
RUN uv pip install --system --no-cache --constraint requirements/constraints-gpu.txt ".[gpu]"
USER tokenyard
