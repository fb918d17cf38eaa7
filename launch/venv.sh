# shellcheck shell=bash
# Sourced by the other scripts: makes .venv (VENV names another) and installs this checkout in it, where pyproject.toml
# has changed since.
# Prints the comment at the beginning of the script and exits, if one of the script's arguments asks for help; a script
# calls it before it installs anything.
help_if_asked() { # the script's arguments
  local word
  for word; do
    if [[ $word == --help || $word == -h ]]; then
      sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
      exit 0
    fi
  done
}

install_jaxrlvr() { # what to install, such as '.[test]', as pip takes it
  local python=${PYTHON:-python3} venv=${VENV:-.venv} stamp
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      { echo "needs Python >= 3.11, $python is $("$python" -V 2>&1); set PYTHON=/path/to/python3.11" >&2; exit 2; }
    echo "making $venv ..."
    if "$python" -c 'import ensurepip' 2>/dev/null; then
      "$python" -m venv --clear "$venv"
    else # Debian without python3-venv, and Colab: their own pip serves
      "$python" -m venv --clear --without-pip "$venv"
      "$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check pip ||
        { echo "$python has neither ensurepip nor pip; install python3-venv" >&2; exit 2; }
    fi
  fi
  stamp="$venv/.installed-$(printf %s "$*" | tr -c 'a-z\n' '_')"
  if [[ ! -e $stamp ]] || ! cmp -s pyproject.toml "$stamp"; then
    echo "installing $* into $venv (once, some minutes) ..."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$@"
    cp pyproject.toml "$stamp"
  fi
}
