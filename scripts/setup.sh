#!/usr/bin/env bash
# Make .venv ready: Python, the tested versions of all packages, off-screen rendering.
#
# `make` runs it before every target. Repeating it is safe: when nothing has changed it takes a
# second and needs no network. As root on Debian or Ubuntu it installs the system packages that are
# missing; anywhere else it names them and stops.
#
# PYTHON=/path/to/python chooses the interpreter (default: 3.11, which is tested most, else 3.12).
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/.installed

say() { printf 'setup: %s\n' "$*" >&2; }

stop() {
    say "$*"
    exit 1
}

# install_system REASON PACKAGE...
install_system() {
    local reason=$1
    shift
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        stop "$reason. On Debian or Ubuntu run: sudo apt-get install $*. Then run make again."
    fi
    say "$reason: installing $*"
    apt-get update -qq >&2 || say "apt-get update failed; trying with the lists that are here"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
        </dev/null >/dev/null || stop "$reason, and apt-get could not install $*"
}

# The version as 3.11, or nothing where the command does not run (pyenv leaves such shims).
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

# Not 3.13: robosuite needs a NumPy that has no wheel for it.
find_python() {
    local candidate found
    if [ -n "${PYTHON:-}" ]; then
        found=$(version_of "$PYTHON")
        case $found in
            3.11 | 3.12) echo "$PYTHON" ;;
            "") stop "PYTHON=$PYTHON is no Python that runs" ;;
            *) stop "PYTHON=$PYTHON is Python $found; the tested versions need 3.11 or 3.12" ;;
        esac
        return 0
    fi
    for candidate in python3.11 python3.12 python3; do
        case $(version_of "$candidate") in
            3.11 | 3.12)
                echo "$candidate"
                return 0
                ;;
        esac
    done
    stop "no Python 3.11 or 3.12 found. Install one (from your system, uv, conda or pyenv) and put it" \
        "on the PATH, or name it: make demo PYTHON=/path/to/python3.11"
}

make_venv() {
    local python old
    old=$(version_of $venv/bin/python)
    [ -x $venv/bin/pip ] || old= # its making was interrupted
    if [ -n "$old" ] && [ -z "${PYTHON:-}" ]; then
        case $old in
            3.11 | 3.12) return 0 ;;
            *) stop "$venv has Python $old, which is not 3.11 or 3.12. Remove $venv and run make again" ;;
        esac
    fi
    python=$(find_python)
    [ "$(version_of "$python")" != "$old" ] || return 0
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        install_system "$python cannot make virtual environments" "python$(version_of "$python")-venv"
    fi
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear $venv
}

# robosuite brings evdev, which PyPI has only as C source.
ensure_compiler() {
    local include
    local packages=(gcc libc6-dev linux-libc-dev)
    [ "$(uname -s)" = Linux ] || return 0
    ! $venv/bin/python -c 'import evdev' 2>/dev/null || return 0
    include=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
    if ! printf '#include <Python.h>\n#include <linux/input.h>\n' |
        gcc -fsyntax-only -I"$include" -x c - 2>/dev/null; then
        # A Python from elsewhere (uv, conda, pyenv) has its headers with it.
        [ -e "$include/Python.h" ] || packages+=("python$(version_of $venv/bin/python)-dev")
        install_system "evdev, which robosuite needs, is compiled here: gcc or headers are missing" \
            "${packages[@]}"
    fi
}

# What the installation depends on; the path, because an editable install records it.
fingerprint() {
    pwd
    cat pyproject.toml constraints.txt | cksum
}

install_packages() {
    local quiet=--quiet
    [ "$(cat $stamp 2>/dev/null)" != "$(fingerprint)" ] || return 0
    ensure_compiler
    [ ! -t 1 ] || quiet= # at a terminal pip's progress is worth seeing
    say "installing the packages into $venv: about 3 GB, some minutes the first time"
    rm -f $stamp
    # shellcheck disable=SC2086  # an empty $quiet is no argument
    $venv/bin/python -m pip install $quiet --no-input --disable-pip-version-check \
        -c constraints.txt -e '.[all,dev]' || stop "pip failed; its message is above"
    # setuptools leaves it behind; in this folder its entry points, of then, would be found first.
    rm -rf vla_gym.egg-info
    fingerprint >$stamp
    say "installed in $SECONDS s"
}

# In a new process each time: a failed start of GL leaves its mark. OpenCV, which robosuite imports,
# needs the same system libraries.
try_rendering() {
    $venv/bin/python -c '
import cv2
from vla_gym.rendering import check_rendering
print("setup:", check_rendering(), flush=True)' 2>&1
}

ensure_rendering() {
    local report
    if report=$(try_rendering); then
        echo "$report" | grep '^setup:' >&2
        return 0
    fi
    install_system "off-screen rendering does not work here ($(echo "$report" | tail -n 1))" \
        libegl1 libopengl0 libgl1 libgl1-mesa-dri libglib2.0-0
    report=$(try_rendering) ||
        stop "off-screen rendering still does not work: $(echo "$report" | tail -n 1)"
    echo "$report" | grep '^setup:' >&2
}

# The tests of the report page need one where VLA_GYM_REQUIRE names it; nothing else here does.
ensure_browser() {
    local name
    case ",${VLA_GYM_REQUIRE:-}," in *,browser,*) ;; *) return 0 ;; esac
    for name in chromium chromium-browser google-chrome; do
        ! command -v $name >/dev/null || return 0
    done
    install_system "VLA_GYM_REQUIRE asks for a browser, and none is here" chromium
}

make_venv
install_packages
ensure_rendering
ensure_browser
