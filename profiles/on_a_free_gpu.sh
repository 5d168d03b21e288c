#!/bin/bash
# on_a_free_gpu.sh COMMAND...: run a command on a GPU of this machine that no other job of the graph uses; where a
# scheduler has chosen GPUs already, on those.
if [ -n "$CUDA_VISIBLE_DEVICES" ]; then exec "$@"; fi
while :; do
    for number in $(nvidia-smi --query-gpu=index --format=csv,noheader); do
        exec 9> "${TMPDIR:-/tmp}/gpu_$number.$UID.lock"
        if flock --nonblock 9; then CUDA_VISIBLE_DEVICES=$number exec "$@"; fi  # the command keeps the lock
    done
    sleep 1
done
