#!/usr/bin/env bash
# ./launch.sh        makes .venv, installs, runs the quick freezing study, says where the report is
# ./launch.sh test   makes .venv, installs, runs the tests; test quick runs what most changes need
# ./launch.sh lint   makes .venv, installs, runs ruff, pyright and the check of imports
# ./launch.sh local|slurm|kubernetes|sky [options] -- train|experiment ...
#                    makes .venv, installs, and runs that on several processes; their --help says more
# ./launch.sh status --workdir DIR        shows the progress of the workers of a study
# Further arguments go to the study (mtl-jax study freezing --help lists them), or to pytest. PYTHON
# names another interpreter; EXTRAS (cuda or tpu) names what else to install for running on several
# processes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '== %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

case "${1-}" in
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' launch.sh; exit ;;
    test) task='test'; extras='test'; shift ;;
    lint) task='lint'; extras='lint'; shift ;;
    local | slurm | kubernetes | sky | status) task=launch; extras=${EXTRAS-} ;;
    "" | -*) task=study; extras= ;;
    *) fail "unknown task '$1': use ./launch.sh alone, or with test, lint, local, slurm, kubernetes, sky or status" ;;
esac

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
        [ "$candidate" != "${PYTHON-}" ] ||
            fail "PYTHON=$PYTHON is not Python 3.11 or newer with venv: name another one"
    done
    fail "no Python 3.11 or newer with venv was found: install one, or name it with PYTHON=..."
}

# Done once per set of extras, and again when pyproject.toml has changed.
install() {
    local done=".venv/installed${extras:+-$extras}"
    if cmp -s pyproject.toml "$done"; then
        return
    fi
    # An environment that was cut short in the making has no pip.
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        local python
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    say "installing mtl_jax and what it needs into .venv (1 GB, about a minute)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --editable ".${extras:+[$extras]}"
    cp pyproject.toml "$done"
}

# In less than a minute on two cores: what needs no training of more than some steps.
quick=(
    tests/config
    tests/core/test_command_line.py
    tests/core/test_json_files.py
    tests/data/sources/test_files.py
    tests/data/test_checks.py
    tests/data/test_corpus.py
    tests/freezing
    tests/models/test_encoder_config.py
    tests/runs/test_progress.py
    tests/studies/report
    tests/studies/stats
    tests/training/test_losses.py
    tests/training/test_metrics.py
    tests/training/test_optimizer.py
)

install
case "$task" in
    test)
        say "running the tests"
        # A file at a time for each, for what its tests share is made once. A worker that ends by
        # a crash ends the tests: with another in its place the last ones may wait for ever.
        if [ "${1-}" = quick ]; then
            shift
            set -- "${quick[@]}" "$@"
        fi
        exec .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile \
            --no-loadscope-reorder --max-worker-restart 0 "$@"
        ;;
    lint)
        .venv/bin/ruff check .
        .venv/bin/ruff format --check .
        .venv/bin/pyright --pythonpath .venv/bin/python
        exec .venv/bin/lint-imports
        ;;
    launch)
        exec .venv/bin/python -m mtl_jax.launch "$@"
        ;;
    study)
        case " $* " in
            *" --workdir"*) ;;
            *) set -- --workdir runs/freezing "$@" ;;
        esac
        say "running the freezing study: five scenarios, six seeds, some minutes on two cores"
        exec .venv/bin/python -m experiments.freezing "$@"
        ;;
esac
