#!/usr/bin/env bash
# Measures on one GPU or TPU, in calls of under ten minutes each; rows go to results/on_device.jsonl.
#
#   benchmarks/on_device.sh PART      training, unlearning, repair, fusion, grid, default, bench, or all in turn
#   REDUCED=1 benchmarks/on_device.sh all      shows on a CPU that every part runs to its end; writes no rows
#
# A part that is stopped goes on with the same command. Where things are, relative to the checkout:
#   PYTHON   python3               an interpreter with JAX, and with PyTorch to compare with
#   PACKS    ../shared/data        the packed CIFAR-10
#   COLLECT  ../shared/device/wheels.sh      puts the wheels that the interpreter lacks into WHEELS, with a network
#   WHEELS   runs/wheels           those wheels; may be brought from another machine
#   FOLDER   runs/on_device        what is kept between parts
#   RESULTS  results               the folder of rows
#   LIMIT    570                   seconds for each part
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3} packs=${PACKS:-../shared/data} collect=${COLLECT:-../shared/device/wheels.sh}
wheels=${WHEELS:-runs/wheels} folder=${FOLDER:-runs/on_device} results=${RESULTS:-results} limit=${LIMIT:-570}
parts="training unlearning repair fusion grid default bench"
part=${1:-}
if [ "$part" != all ] && ! [[ " $parts " == *" $part "* ]] || [ -z "$part" ]; then
  echo "error: PART: expected one of $parts, or all, found '$part'" >&2
  exit 2
fi

site=$PWD/$folder/site
[[ $folder == /* ]] && site=$folder/site
mkdir -p "$site"
export PYTHONPATH=$PWD:$site XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
missing() { # the modules that the interpreter does not find
  "$python" -c 'import importlib.util as u, sys; print(*(name for name in sys.argv[1:] if u.find_spec(name) is None))' \
    jax flax optax orbax ott ot ml_collections sklearn PIL matplotlib jinja2 dm_pix torch
}
if [ -n "$(missing)" ]; then
  if ! compgen -G "$wheels/*.whl" >/dev/null && [ -f "$collect" ]; then
    bash "$collect" "$wheels" || true # without a network the next lines say what is missing
  fi
  if compgen -G "$wheels/*.whl" >/dev/null; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl
  fi
  lacking=$(missing)
  if [ -n "$lacking" ]; then
    echo "error: WHEELS: expected wheels of $lacking in $wheels, found none" >&2
    exit 2
  fi
fi
# The package's name and version, which rows carry; its code is the checkout's.
"$python" -c "import importlib.metadata as m; m.version('otbr_jax')" 2>/dev/null ||
  "$python" -c "import setuptools; setuptools.setup()" -q egg_info --egg-base "$site"

measure() {
  local began=$SECONDS status=0
  echo "== $1"
  timeout --kill-after=15 "$limit" "$python" -m benchmarks.on_device --part="$1" --packs="$packs" --folder="$folder" \
    --results="$results" ${REDUCED:+--reduced} || status=$?
  case $status in
    0) echo "== $1: done in $((SECONDS - began)) s" ;;
    124 | 130 | 137 | 143)
      echo "== $1: stopped after $((SECONDS - began)) s; the same command goes on"
      [ "$1" = bench ] || return 75 # of a bench as many cells as fit are wanted
      ;;
    *) echo "== $1: failed with status $status" >&2 && return "$status" ;;
  esac
}

[ "$part" = all ] || { measure "$part"; exit; }
failed=0
for each in $parts; do
  measure "$each" || failed=1
done
exit "$failed"
