#!/bin/sh
# Renews requirements/constraints-*.txt; a version that is pinned there stays while it still fits.
set -eu

pin() {
    extra=$1
    shift
    file=requirements/constraints-$extra.txt
    # torch is chosen anew: its pin would prefer the CUDA build, and with that all of CUDA, for the CPU too.
    sed '/^torch==/d' "$file" >"$file.new"
    # No annotations or index lines: the file is to hold names and versions alone.
    .venv/bin/uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --python-version 3.11 \
        --extra "$extra" --extra dev "$@" --output-file "$file.new" pyproject.toml
    # A local version such as +cpu is dropped: the index of whoever installs may offer the other build.
    sed 's/+[a-z0-9.]*$//' "$file.new" >"$file"
    rm "$file.new"
}

pin gpu
# A folder of wheels, which uv does not find in pip's settings, may hold torch's CPU build: not for the GPU.
[ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"
pin cpu --override requirements/cpu-overrides.txt
