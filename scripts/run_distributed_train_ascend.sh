#!/usr/bin/env bash
# Train on all devices of a rank table. msrun starts one worker per device of this server. With several servers, run the
# script on each; set SERVER_ID if the table does not contain a server's own address. With DEVICE_TARGET=CPU only the
# number of workers is taken from the table. A step trains on 32 pairs (the model zoo's batch), divided among the
# workers; --batch_size sets the pairs of each worker instead. Each worker logs to device<N>/train.log in a new folder.
# If a worker fails, all are stopped, and its exit code is returned.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 2 ]] || usage "DATASET_PATH RANK_TABLE_FILE [further arguments of train.py]"
[[ -d $1 ]] || fail "$1: no such folder; expected the NYU folder"
[[ -f $2 ]] || fail "$2: no such file; expected a rank table"
require_python
remember_command "$@"
dataset=$1 rank_table=$2
shift 2
if [[ $DEVICE_TARGET == auto ]]; then
    DEVICE_TARGET=$("$PYTHON" "$ROOT/tools/device_target.py") || exit $?
fi

facts=$("$PYTHON" "$ROOT/tools/rank_table.py" "$rank_table") || exit $?
read -r workers local_workers node_rank master port first_rank devices <<<"$facts"

logs=train_logs/$(date +%Y%m%d-%H%M%S)
while ! mkdir -p -- train_logs || ! mkdir -- "$logs" 2>/dev/null; do
    [[ -d $logs ]] || fail "$logs: cannot be made"
    logs=$logs+
done
logs=$(cd -- "$logs" && pwd)
for ((n = 0; n < local_workers; n++)); do
    mkdir -- "$logs/device$n"
    ln -s "../msrun/worker_$((first_rank + n)).log" "$logs/device$n/train.log"
done
echo "$workers workers, $local_workers here from rank $first_rank, on $DEVICE_TARGET; logs in $logs"

# children PID: print the processes that PID has started, from /proc, because some systems lack pgrep.
children() {
    local file line parent
    for file in /proc/[0-9]*/stat; do
        { read -r line <"$file"; } 2>/dev/null || continue # the process has ended
        read -r _ parent _ <<<"${line##*) }"
        [[ $parent != "$1" ]] || echo "${line%% *}"
    done
}

# hand_on SIGNAL: send a signal to the workers, which then finish their step, save and exit. The terminal does not reach
# them, because msrun starts each in its own session.
# shellcheck disable=SC2329  # hand_on_and_wait calls it
hand_on() {
    local pid
    stopped=$((128 + $(kill -l "$1")))
    for pid in $(children "$msrun_pid"); do
        grep -qz '^MS_ROLE=MS_WORKER' "/proc/$pid/environ" 2>/dev/null && kill -s "$1" "$pid"
    done
    return 0
}

# end_scheduler: after a worker has failed, msrun kills the others and waits for its scheduler, which would take minutes
# to notice. Kill the scheduler then. This function ignores signals (Ctrl-C reaches it, too) and ends with msrun.
end_scheduler() {
    trap '' INT TERM HUP
    while kill -0 "$msrun_pid" 2>/dev/null; do
        if grep -qs 'exit with exception. Error code' "$logs/msrun.log"; then
            # shellcheck disable=SC2046  # numbers
            kill -s KILL $(children "$msrun_pid") 2>/dev/null || true
        fi
        sleep 1
    done
}

# The rank table is not passed to the workers: with RANK_TABLE_FILE they would use its device ids, which count all
# devices of the server, instead of the ids that ASCEND_RT_VISIBLE_DEVICES gives them. msrun is used because with a rank
# table alone MindSpore would compile with its graph engine (GE).
where=(--worker_num="$workers" --local_worker_num="$local_workers" --master_addr="$master"
    --master_port="$port" --join=True --log_dir="$logs/msrun" --tail_worker_log=0)
[[ $workers -eq $local_workers ]] || where+=(--node_rank="$node_rank")
if [[ $DEVICE_TARGET == Ascend ]]; then
    export ASCEND_RT_VISIBLE_DEVICES=$devices
    # Rank 0 may read all depth maps before the first collective.
    export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1800}
fi
batch_size=$((workers < 32 ? 32 / workers : 1)) # of each worker
# msrun starts the first "python" on PATH. At Ctrl-C it would kill the workers, so it gets its own session.
PATH=$(dirname -- "$(command -v "$PYTHON")"):$PATH setsid msrun "${where[@]}" \
    "$ROOT/train.py" --data_url "$dataset" --device_target "$DEVICE_TARGET" --batch_size "$batch_size" "$@" \
    >"$logs/msrun.log" 2>&1 &
msrun_pid=$! stopped=
end_scheduler &
tail --pid="$$" -n +1 --silent -F -- "$logs/device0/train.log" 2>/dev/null &
screen=$!
code=0
hand_on_and_wait "$msrun_pid" hand_on || code=$?
sleep 1 # lets tail print the last lines
kill "$screen" 2>/dev/null || true
if [[ $code -ne 0 ]]; then
    # msrun's own exit code is always 1. Its log has the exit code of the worker, -N if signal N ended it.
    worker=$(sed -n 's/.*Worker process [0-9]* exit with exception. Error code: \(-\?[0-9]*\).*/\1/p' \
        "$logs/msrun.log" | head -n 1)
    [[ -z $worker ]] || code=$((worker < 0 ? 128 - worker : worker))
    # MindSpore's collectives turn SIGINT into SIGTERM: return the code of the signal that this script received.
    [[ -z $stopped || $code -le 128 ]] || code=$stopped
    {
        for log in "$logs"/device*/train.log; do
            [[ -f $log ]] || continue # the worker never started
            echo "--- the last lines of $log"
            grep -v '^\[INFO\] DISTRIBUTED' -- "$log" | tail -n 5
        done
        echo "a worker ended with exit code $code"
    } >&2 || true # the terminal may be closed
fi
exit "$code"
