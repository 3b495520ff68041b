# Sourced by the launch scripts. Finds the Python to use and the number of GPUs, and starts one process for each GPU.
#   PYTHON  the interpreter (default: the project's .venv if it is there, else python3)
#   NGPU    processes to start (default: the GPUs that torch sees; on a machine without GPU 1, by gloo if more)
#   TORCHRUN  flags of torchrun instead of --standalone, for several machines (see slurm.sh)
#   EXEC    "exec": the run takes the place of the script, so that a signal to the script reaches it

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$repository/.venv/bin/python" ] && PYTHON="$repository/.venv/bin/python"
fi
NGPU=${NGPU:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}

# launch FILE FLAGS...
launch() {
    local file=$1
    shift
    if [ "$NGPU" -gt 1 ] || [ -n "${TORCHRUN:-}" ]; then
        ${EXEC:-} "$PYTHON" -m torch.distributed.run ${TORCHRUN:---standalone} --nproc_per_node="$NGPU" \
            "$repository/$file" "$@"
    else
        ${EXEC:-} "$PYTHON" "$repository/$file" "$@"
    fi
}
