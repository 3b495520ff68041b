# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: creates .venv in the project and installs a requirements file into it.
# Installs again only if a requirements file has changed. The script that sources it sets `repository`.
#   PYTHON  your own interpreter with everything installed: nothing is created or installed

# install REQUIREMENTS
install() {
    if [ -n "${PYTHON:-}" ]; then
        return
    fi
    local environment="${repository:?}/.venv" stamp
    PYTHON="$environment/bin/python"
    stamp="$environment/$1.installed"
    if [ -x "$PYTHON" ] && cmp -s <(cat "$repository"/requirements*.txt) "$stamp"; then
        return
    fi
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "error: python3 is $(python3 --version 2>&1); this project needs Python 3.10 or newer" >&2
        exit 2
    fi
    echo "Installing $1 into $environment (some minutes and 6 GB the first time) ..."
    [ -x "$PYTHON" ] || python3 -m venv "$environment"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$repository/$1" || return
    cat "$repository"/requirements*.txt >"$stamp"
}
