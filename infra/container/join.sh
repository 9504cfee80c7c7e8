#!/usr/bin/env bash
# vdmini-join COMMAND...: runs COMMAND on a node of the Ray cluster at RAY_ADDRESS.
#
# A driver has to be on a node of its cluster. This makes one that offers nothing: no training worker is put
# here, and the GPU of this machine, where there is one, is the driver's own.
set -euo pipefail
: "${RAY_ADDRESS:?host:port of the Ray head}"
(($#)) || { echo "vdmini-join: expected a command" >&2; exit 2; }

for _ in {1..60}; do
  ray health-check --address "$RAY_ADDRESS" && break
  sleep "${VDMINI_JOIN_POLL_S:-5}"
done
ray start --address="$RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --disable-usage-stats

command_pid=
# shellcheck disable=SC2329  # called by the trap
stop() {
  trap - TERM INT
  [[ -z $command_pid ]] || kill -TERM "$command_pid" 2>/dev/null || true
}
trap stop TERM INT
"$@" &
command_pid=$!
status=0
wait "$command_pid" || status=$?
# A signal ends the first wait at once: the command's own end is what counts.
while kill -0 "$command_pid" 2>/dev/null; do
  wait "$command_pid" || status=$?
done
ray stop || true
exit "$status"
