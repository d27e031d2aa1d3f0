#!/bin/sh
# Renews requirements/constraints-*.txt; a version that is pinned there stays while it still fits.
set -eu

# uv does not read pip's settings.
[ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"

pin() {
    extra=$1
    shift
    file=requirements/constraints-$extra.txt
    # No annotations or index lines: the file is to hold names and versions alone. A local version such as
    # +cpu is dropped, because the index a user has may offer the other build.
    .venv/bin/uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --python-version 3.11 \
        --extra "$extra" --extra dev "$@" --output-file "$file" pyproject.toml
    sed -i.bak 's/+[a-z0-9.]*$//' "$file"
    rm "$file.bak"
}

pin cpu --override requirements/cpu-overrides.txt
pin gpu
