#!/usr/bin/env bash
# Train on all devices of a rank table: one worker a local device, started by msrun, or with LAUNCH=rank_table by
# MindSpore's rank-table start. On several servers run it on each; SERVER_ID says which one this is where its address
# does not. With DEVICE_TARGET=CPU the table only gives the number of workers.
# Logs go to a new folder, device<N>/train.log a worker. One worker's failure stops all and is the exit code.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 2 ]] || usage "DATASET_PATH RANK_TABLE_FILE [further arguments of train.py]"
[[ -d $1 ]] || fail "$1: no such folder; expected the NYU folder"
[[ -f $2 ]] || fail "$2: no such file; expected a rank table"
require_python
dataset=$1 rank_table=$(cd -- "$(dirname -- "$2")" && pwd)/$(basename -- "$2")
shift 2
LAUNCH=${LAUNCH:-msrun} MASTER_PORT=${MASTER_PORT:-8118}
[[ $DEVICE_TARGET == auto ]] && DEVICE_TARGET=Ascend
[[ $LAUNCH == msrun || $LAUNCH == rank_table ]] || fail "LAUNCH=$LAUNCH: expected msrun or rank_table"
[[ $LAUNCH == msrun || $DEVICE_TARGET == Ascend ]] || fail "LAUNCH=rank_table starts on Ascend only"

facts=$("$PYTHON" "$ROOT/tools/rank_table.py" "$rank_table") || exit $?
read -r workers local_workers node_rank master first_rank devices <<<"$facts"

logs=train_logs/$(date +%Y%m%d-%H%M%S)
while ! mkdir -p -- train_logs || ! mkdir -- "$logs" 2>/dev/null; do
    [[ -d $logs ]] || fail "$logs: cannot be made"
    logs=$logs+
done
logs=$(cd -- "$logs" && pwd)
for ((n = 0; n < local_workers; n++)); do
    mkdir -- "$logs/device$n"
    [[ $LAUNCH == rank_table ]] || ln -s "../msrun/worker_$((first_rank + n)).log" "$logs/device$n/train.log"
done
echo "$workers workers, $local_workers here from rank $first_rank, on $DEVICE_TARGET; logs in $logs"

command=("$ROOT/train.py" --data_url "$dataset" --device_target "$DEVICE_TARGET" "$@")
pids=()

# hand_on SIGNAL: to the workers, which finish their step, save and exit. (msrun starts each in a session of its own.)
hand_on() {
    if [[ $LAUNCH == msrun ]]; then
        local pid
        for pid in $(pgrep -P "${pids[0]}"); do
            grep -qz '^MS_ROLE=MS_WORKER' "/proc/$pid/environ" 2>/dev/null && kill -s "$1" "$pid"
        done
    else
        kill -s "$1" "${pids[@]}" 2>/dev/null
    fi
    return 0
}

start_msrun() {
    local where=(--worker_num="$workers" --local_worker_num="$local_workers" --master_addr="$master"
        --master_port="$MASTER_PORT" --join=True --log_dir="$logs/msrun" --tail_worker_log=0)
    [[ $workers -eq $local_workers ]] || where+=(--node_rank="$node_rank")
    if [[ $DEVICE_TARGET == Ascend ]]; then
        export ASCEND_RT_VISIBLE_DEVICES=$devices
        where+=(--rank_table_file="$rank_table")
    fi
    # msrun starts the "python" that is first on PATH, and obeys Ctrl-C by killing: it gets a session of its own.
    PATH=$(dirname -- "$(command -v "$PYTHON")"):$PATH setsid msrun "${where[@]}" "${command[@]}" \
        >"$logs/msrun.log" 2>&1 &
    pids=($!)
    end_scheduler "${pids[0]}" &
}

# end_scheduler MSRUN_PID: when a worker has failed, msrun kills the others and then waits for its scheduler, which
# takes minutes to notice. Ends with msrun.
end_scheduler() {
    while kill -0 "$1" 2>/dev/null; do
        if grep -qs 'exit with exception. Error code' "$logs/msrun.log"; then
            pkill -KILL -P "$1" || true
        fi
        sleep 1
    done
}

start_rank_table() {
    local n
    export RANK_TABLE_FILE=$rank_table RANK_SIZE=$workers
    for ((n = 0; n < local_workers; n++)); do
        DEVICE_ID=$(cut -d, -f$((n + 1)) <<<"$devices") RANK_ID=$((first_rank + n)) \
            setsid "$PYTHON" "${command[@]}" >"$logs/device$n/train.log" 2>&1 &
        pids+=($!)
    done
}

# await: the first exit code that is not 0, or 0 when all have ended well; signals that come meanwhile are handed on.
await() {
    local code pid left=${#pids[@]}
    while [[ $left -gt 0 ]]; do
        code=0
        wait -n -p pid "${pids[@]}" || code=$?
        [[ -n ${pid:-} ]] || continue # a trapped signal
        left=$((left - 1))
        [[ $code -eq 0 ]] || return "$code"
    done
}

trap 'hand_on TERM' TERM
trap 'hand_on INT' INT
"start_$LAUNCH"
tail --pid="$$" -n +1 --silent -F -- "$logs/device0/train.log" 2>/dev/null &
screen=$!
code=0
await || code=$?
trap - TERM INT
sleep 1 # for the screen
kill "$screen" 2>/dev/null || true
if [[ $code -ne 0 ]]; then
    if [[ $LAUNCH == msrun ]]; then # its own exit code is always 1: the worker's is in its log, minus N for signal N
        worker=$(sed -n 's/.*Worker process [0-9]* exit with exception. Error code: \(-\?[0-9]*\).*/\1/p' \
            "$logs/msrun.log" | head -n 1)
        [[ -z $worker ]] || code=$((worker < 0 ? 128 - worker : worker))
    else
        kill -KILL "${pids[@]}" 2>/dev/null || true
    fi
    for log in "$logs"/device*/train.log; do
        echo "--- the last lines of $log" >&2
        grep -v '^\[INFO\] DISTRIBUTED' -- "$log" | tail -n 5 >&2 || true
    done
    echo "a worker ended with exit code $code" >&2
fi
exit "$code"
