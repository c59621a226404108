#!/usr/bin/env bash
# A TPU pod, from the request for it to the end of a run. Each command takes the same flags:
#
#   launch/tpu_vm.sh create --name=NAME --zone=ZONE --type=v3-32 [--spot]
#   launch/tpu_vm.sh setup  --name=NAME --zone=ZONE --type=v3-32 [--spot]
#   launch/tpu_vm.sh run    --name=NAME --zone=ZONE --type=v3-32 [--spot] -- FLAGS OF THE TRAINER
#   launch/tpu_vm.sh status|logs|stop|delete --name=NAME --zone=ZONE
#
# create  requests the pod and waits for it
# setup   copies the last commit to all workers, and installs
# run     trains, and watches to the end; exits with the run's code. A pod that is preempted is
#         requested again, and the run resumes. Interrupt it and the run continues; `run` watches again
# status  of pod and run
# logs    of worker 0 as they come, or of --worker=N
# stop    saves and stops
# delete  gives the pod back: until then it costs money
# --dry_run prints the commands of gcloud.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "launch/tpu_vm.sh: $1" >&2
    exit 78
}

name="" zone="" type="" worker=0 dry_run=""
spot=() flags=()
action="${1:---help}"
shift || true
while (($#)); do
    case "$1" in
        --name=*) name="${1#*=}" ;;
        --zone=*) zone="${1#*=}" ;;
        --type=*) type="${1#*=}" ;;
        --worker=*) worker="${1#*=}" ;;
        --spot) spot=(--spot) ;;
        --dry_run) dry_run=1 ;;
        --)
            shift
            flags=("$@")
            break
            ;;
        -h | --help) action=--help ;;
        *) fail "unknown flag $1; flags of the trainer follow --" ;;
    esac
    shift
done
if [[ "$action" == -h || "$action" == --help ]]; then
    sed -n '2,/^[^#]/{s/^# //p;s/^#$//p}' launch/tpu_vm.sh
    exit 0
fi
[[ -n "$name" && -n "$zone" ]] || fail "expected --name and --zone"
[[ -n "$type" || ! "$action" =~ ^(create|setup|run)$ ]] || fail "expected --type, such as v3-32"

poll="${POLL:-30}" # seconds
unit="gpt_pjit@\$USER" # the workers' user
show="systemctl show $unit --property=ActiveState,ExecMainCode,ExecMainStatus,NRestarts"
exec 3>&1
tpus() {
    local command=(gcloud compute tpus "$@" --zone="$zone")
    if [[ -n "$dry_run" ]]; then
        { printf '%q ' "${command[@]}" && echo; } >&3
    else
        "${command[@]}"
    fi
}

on_workers() { # WORKERS COMMAND
    tpus tpu-vm ssh "$name" --worker="$1" --command="$2"
}

pod_state() { # ACTIVE, or a state of the request or of the pod; empty if neither is known
    local state
    state="$(tpus queued-resources describe "$name" --format="value(state.state)" || true)"
    if [[ "$state" == ACTIVE ]]; then
        state="$(tpus tpu-vm describe "$name" --format="value(state)" || true)"
        [[ "$state" != READY ]] || state=ACTIVE
    fi
    echo "${dry_run:+ACTIVE}$state"
}

create() {
    local version=tpu-ubuntu2204-base
    case "$type" in # cloud.google.com/tpu/docs/runtimes
        v5e-* | v5litepod-*) version=v2-alpha-tpuv5-lite ;;
        v5p-*) version=v2-alpha-tpuv5 ;;
        v6e-*) version=v2-alpha-tpuv6e ;;
    esac
    tpus queued-resources create "$name" --node-id="$name" --runtime-version="$version" \
        --accelerator-type="${type/#v5e-/v5litepod-}" "${spot[@]}"
    local state="" last=""
    while state="$(pod_state)"; do
        [[ "$state" == "$last" ]] || echo "$name: ${state:-no answer}"
        last="$state"
        case "$state" in
            ACTIVE | SUSPENDED | PREEMPTED | TERMINATED) return ;;
            FAILED) exit 1 ;;
        esac
        sleep "$poll"
    done
}

setup() {
    local folder
    folder="$(mktemp -d)"
    git bundle create --quiet "$folder/gpt_pjit.bundle" HEAD
    [[ -z "$(git status --porcelain)" ]] || echo "uncommitted changes are not copied" >&2
    tpus tpu-vm scp "$folder/gpt_pjit.bundle" "$name:" --worker=all
    rm -r "$folder"
    on_workers all 'set -e
git init --quiet gpt_pjit
cd gpt_pjit
git fetch --quiet ~/gpt_pjit.bundle HEAD
git checkout --quiet --force FETCH_HEAD
launch/run.sh --install
mkdir -p ~/.config
sudo cp launch/systemd/gpt_pjit@.service /etc/systemd/system/
sudo systemctl daemon-reload'
}

start() {
    local script
    script="exec launch/run.sh --distributed$(printf ' %q' "${flags[@]}")"
    on_workers all "printf '%s\n' $(printf '%q' "$script") > ~/.config/gpt_pjit.sh
sudo systemctl reset-failed $unit 2> /dev/null || true  # the limit of starts
sudo systemctl enable --now $unit"
}

watch() { # to the end of the run; returns its exit code, or 255 if the pod is gone
    local answer
    while :; do
        case "$(pod_state)" in
            SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED | FAILED) return 255 ;;
        esac
        answer="$(on_workers 0 "$show" || true)"
        [[ -z "$dry_run" ]] || return 0
        # ActiveState is activating while a restart waits, and ExecMainCode 0 before the first start.
        if [[ "$answer" =~ ActiveState=(inactive|failed) && "$answer" =~ ExecMainCode=([123]) ]]; then
            local killed=$((BASH_REMATCH[1] == 1 ? 0 : 128))
            [[ "$answer" =~ ExecMainStatus=([0-9]+) ]]
            return $((killed + BASH_REMATCH[1]))
        fi
        sleep "$poll"
    done
}

delete() {
    tpus queued-resources delete "$name" --force --quiet
}

case "$action" in
    create | setup | delete) "$action" ;;
    run)
        start
        while :; do
            code=0
            watch || code=$?
            ((code == 255)) || break
            echo "$name is gone; requesting it again"
            delete
            create
            if ! { setup && start; }; then
                [[ "$(pod_state)" != ACTIVE ]] || exit 1
            fi
        done
        echo "the run has ended with exit code $code; the pod costs money until it is deleted"
        exit "$code"
        ;;
    status)
        echo "$name: $(pod_state)"
        on_workers all "$show"
        ;;
    logs) on_workers "$worker" "tail --lines=100 --follow=name gpt_pjit.log" ;;
    stop) on_workers all "sudo systemctl disable --now $unit" ;;
    *) fail "unknown command $action" ;;
esac
