# Read by every recipe: OUT is where it all goes, SEED the seed of training, WORKERS the processes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH="$PWD/.venv/bin:$PATH"
RECIPE=$(basename "$0" .sh)
OUT=${OUT:-results/recipes/$RECIPE}
SEED=${SEED:-0}
WORKERS=${WORKERS:-$(nproc)}
# One thread for each process's arithmetic: the processes are the parallelism.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=1
