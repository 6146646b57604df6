#!/usr/bin/env bash
# Prepare this checkout: system packages, a virtual environment in .venv, pinned Python packages, GPAW.
# Safe to run again at any time: it does only what is missing, and repairs what was interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m· %s\033[0m\n' "$*"; }
fail() { printf 'meissner set-up: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 is needed (the pinned versions are tested with it); install it, or name it: PYTHON=/path/to/python3.11 make run"
}

# Debian packages that are missing, found by what they bring rather than by the package database.
missing_packages() {
    local python=$1
    command -v gcc >/dev/null || echo gcc
    command -v g++ >/dev/null || echo g++
    command -v cmake >/dev/null || echo cmake # BoltzTraP2 builds its own copy of spglib
    local header name
    for name in libxc-dev:xc.h libopenblas-dev:cblas.h libfftw3-dev:fftw3.h; do
        header=${name#*:}
        echo "#include <$header>" | gcc -E -x c - >/dev/null 2>&1 ||
            compgen -G "/usr/include/*/$header" >/dev/null || compgen -G "/usr/include/*/*/$header" >/dev/null ||
            echo "${name%%:*}"
    done
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3.11-venv
    "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || echo python3.11-dev
}

install_packages() {
    local packages=("$@") prefix=()
    local command="apt-get install -y --no-install-recommends ${packages[*]}"
    command -v apt-get >/dev/null 2>&1 ||
        fail "these system packages are needed, under their Debian names: ${packages[*]}. There is no apt-get here: install them your system's way, then run the same command again."
    if [ "$(id -u)" -ne 0 ]; then
        if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
            prefix=(sudo -n)
        elif command -v sudo >/dev/null 2>&1 && [ -t 0 ]; then
            prefix=(sudo)
        else
            fail "these system packages are needed: ${packages[*]}. As root, run: $command   Then run the same command again."
        fi
    fi
    say "Installing system packages: ${packages[*]}"
    "${prefix[@]}" env DEBIAN_FRONTEND=noninteractive sh -c "apt-get update -qq && $command >/dev/null" ||
        fail "apt-get could not install ${packages[*]}; its messages stand above."
}

python=$(find_python)
mapfile -t packages < <(missing_packages "$python")
[ "${#packages[@]}" -eq 0 ] || install_packages "${packages[@]}"

fingerprint=$(cat pyproject.toml deployments/constraints.txt deployments/setup.sh | sha256sum | cut -c1-16)
stamp=.venv/.meissner-$fingerprint
if [ -e "$stamp" ] && .venv/bin/python -c 'import sys' 2>/dev/null; then
    exit 0
fi

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "Making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT="$PWD/deployments/constraints.txt"
export PIP_BUILD_CONSTRAINT=$PIP_CONSTRAINT
pip() { .venv/bin/python -m pip "$@"; }
say "Installing pinned packages (some minutes the first time)"
pip install -q --upgrade pip # an older one takes twice the time
pip install -q torch # first and alone, so that nothing else chooses another build of it
pip install -q setuptools wheel cython netCDF4 # BoltzTraP2's build and import want them
pip install -q -e '.[dev,group,kubernetes]'
pip install -q --no-deps vit-pytorch # a test's reference for BNAS; its torchvision would bring another torch
say "Building GPAW, the open band engine"
if ! GPAW_CONFIG="$PWD/deployments/gpaw_siteconfig.py" pip install -q -e '.[gpaw]'; then
    say "GPAW could not be built: its messages stand above. Everything else works; new bands need another engine."
fi
rm -f .venv/.meissner-*
touch "$stamp"
