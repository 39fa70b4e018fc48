#!/usr/bin/env bash
# Train on all devices of a rank table: one worker a local device, started by msrun. On several servers run it on each;
# SERVER_ID says which one this is where its address does not. With DEVICE_TARGET=CPU the table only gives the number of
# workers. A step trains on the model zoo's 32 pairs, shared among the workers, unless --batch_size gives the pairs of
# one worker. Logs go to a new folder, device<N>/train.log a worker. One worker's failure stops all and is the exit code.
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

# children PID: those that it has started itself, as Linux says: not every system has pgrep.
children() {
    local file line parent
    for file in /proc/[0-9]*/stat; do
        { read -r line <"$file"; } 2>/dev/null || continue # it has ended
        read -r _ parent _ <<<"${line##*) }"
        [[ $parent != "$1" ]] || echo "${line%% *}"
    done
}

# hand_on SIGNAL: to the workers, which finish their step, save and exit. (msrun starts each in a session of its own.)
# shellcheck disable=SC2329  # hand_on_and_wait calls it
hand_on() {
    local pid
    stopped=$((128 + $(kill -l "$1")))
    for pid in $(children "$msrun_pid"); do
        grep -qz '^MS_ROLE=MS_WORKER' "/proc/$pid/environ" 2>/dev/null && kill -s "$1" "$pid"
    done
    return 0
}

# end_scheduler: when a worker has failed, msrun kills the others and then waits for its scheduler, which takes minutes
# to notice. Ends with msrun, and not before: Ctrl-C reaches it, too.
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

# The rank table itself is not handed on: with RANK_TABLE_FILE a worker takes the table's device ids, of the whole
# server, where ASCEND_RT_VISIBLE_DEVICES has given it others. (Without msrun MindSpore would choose its graph engine.)
where=(--worker_num="$workers" --local_worker_num="$local_workers" --master_addr="$master"
    --master_port="$port" --join=True --log_dir="$logs/msrun" --tail_worker_log=0)
[[ $workers -eq $local_workers ]] || where+=(--node_rank="$node_rank")
if [[ $DEVICE_TARGET == Ascend ]]; then
    export ASCEND_RT_VISIBLE_DEVICES=$devices
    # Rank 0 may read all depth maps before the first collective.
    export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1800}
fi
batch_size=$((workers < 32 ? 32 / workers : 1)) # of each worker
# msrun starts the "python" that is first on PATH, and obeys Ctrl-C by killing: it gets a session of its own.
PATH=$(dirname -- "$(command -v "$PYTHON")"):$PATH setsid msrun "${where[@]}" \
    "$ROOT/train.py" --data_url "$dataset" --device_target "$DEVICE_TARGET" --batch_size "$batch_size" "$@" \
    >"$logs/msrun.log" 2>&1 &
msrun_pid=$! stopped=
end_scheduler &
tail --pid="$$" -n +1 --silent -F -- "$logs/device0/train.log" 2>/dev/null &
screen=$!
code=0
hand_on_and_wait "$msrun_pid" hand_on || code=$?
sleep 1 # for the screen
kill "$screen" 2>/dev/null || true
if [[ $code -ne 0 ]]; then
    # msrun's own exit code is always 1: the worker's is in its log, minus N for signal N
    worker=$(sed -n 's/.*Worker process [0-9]* exit with exception. Error code: \(-\?[0-9]*\).*/\1/p' \
        "$logs/msrun.log" | head -n 1)
    [[ -z $worker ]] || code=$((worker < 0 ? 128 - worker : worker))
    # MindSpore's collectives make SIGTERM of SIGINT: what counts is what was asked for.
    [[ -z $stopped || $code -le 128 ]] || code=$stopped
    {
        for log in "$logs"/device*/train.log; do
            [[ -f $log ]] || continue # it never began
            echo "--- the last lines of $log"
            grep -v '^\[INFO\] DISTRIBUTED' -- "$log" | tail -n 5
        done
        echo "a worker ended with exit code $code"
    } >&2 || true # the terminal may be closed
fi
exit "$code"
