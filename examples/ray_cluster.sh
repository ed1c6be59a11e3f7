#!/bin/bash
# A Ray cluster of machines that share a file system, and a job on it.
#
#     examples/ray_cluster.sh head          on the first machine; copy ~/.ray/auth_token from it to the others
#     examples/ray_cluster.sh join FIRST    on each of the others
#     examples/ray_cluster.sh embed FIRST   on any of them
#
# Set CORPUS, OUTPUT and MODEL for the last one. `ray stop` on a machine takes it out; the job goes on without it.

set -euo pipefail
# Ray runs what it is sent: let nobody in without the token.
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token

case "${1:-}" in
head)
    ray get-auth-token --generate > /dev/null
    ray start --head --port=6379 --include-dashboard=false
    ;;
join)
    ray start --address="${2:?the first machine}:6379"
    ;;
embed)
    valuembed embed "${CORPUS:-data}" --output "${OUTPUT:-vectors}" --model "${MODEL:-bundled}" \
        --engine ray --ray-address "${2:?the first machine}:6379" --workers 1:64
    ;;
*)
    echo "usage: $0 head | join FIRST | embed FIRST" >&2
    exit 2
    ;;
esac
