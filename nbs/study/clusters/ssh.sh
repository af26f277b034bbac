#!/bin/sh
# A Dask scheduler here and workers on other machines, reached by ssh; all of them end with this script.
set -u

usage() {
cat <<'TEXT'
usage: ssh.sh --host ADDRESS [options] HOSTS [-- COMMAND ...]

Starts `dask scheduler` on this machine and `dask worker`s on the machines named in the file HOSTS, and stops them when COMMAND
ends, or at Ctrl-C where there is none. The exit code is COMMAND's. All machines must see the study root and the Python
environment under the same path. Whoever reaches ADDRESS can run any code as you: give an address of a private network.

HOSTS has one machine a line, as ssh knows it, and how many slots it has (1 when nothing is said); # begins a comment:
    node1 2
    me@node2

  --host ADDRESS   address of this machine that the others reach (wanted)
  --port N         port of the scheduler (default 8786)
  --python PATH    interpreter, the same path on all machines (default: python3 as found here)
  --cores N        cores of a slot; threads are capped to it (default 4)
  --gpus N         GPUs of a slot, 0 or 1; slot number k of a machine gets its GPU number k (default 0)
  --gb N           memory of a slot in GB (default 16)
  --local PATH     scratch folder on the machines (default /tmp)
  --ssh COMMAND    ssh with options of your own (default: ssh); words are parted at spaces
  --help           this text

Example: sh ssh.sh --host 10.0.0.1 hosts.txt -- ich-study sweep study.yml --scheduler tcp://10.0.0.1:8786
TEXT
}

wrong() { echo "ssh.sh: $1; see ssh.sh --help" >&2; exit 2; }
whole() { case $2 in ''|*[!0-9]*) wrong "$1 should be a whole number, but is '$2'";; esac; }
quote() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }  # one word for any shell

host='' port=8786 python='' cores=4 gpus=0 gb=16 local=/tmp ssh=ssh hosts=''
while [ $# -gt 0 ]; do
  case $1 in
    --help|-h) usage; exit 0;;
    --) break;;
    --host|--port|--python|--cores|--gpus|--gb|--local|--ssh)
      [ $# -ge 2 ] || wrong "$1 needs a value"
      case $1 in
        --host) host=$2;; --port) port=$2;; --python) python=$2;; --cores) cores=$2;;
        --gpus) gpus=$2;; --gb) gb=$2;; --local) local=$2;; --ssh) ssh=$2;;
      esac
      shift 2;;
    -*) wrong "unknown option $1";;
    *) [ -z "$hosts" ] || wrong "one file of hosts is wanted, but '$hosts' and '$1' came"; hosts=$1; shift;;
  esac
done
[ $# -eq 0 ] || shift  # the --
[ -n "$hosts" ] || wrong "a file of hosts is wanted"
[ -r "$hosts" ] || wrong "the file of hosts '$hosts' cannot be read"
case $host in ''|*[!0-9A-Za-z.:-]*) wrong "--host should be an address of this machine, but is '$host'";; esac
whole --port "$port"; whole --cores "$cores"; whole --gb "$gb"
case $gpus in 0|1) ;; *) wrong "--gpus should be 0 or 1, but is '$gpus'";; esac
[ -n "$python" ] || python=$(command -v python3) || wrong "no python3 is here; give --python"

hostlist=$(sed 's/#.*//' "$hosts" | while read -r name slots rest || [ -n "$name" ]; do
  [ -n "$name" ] || continue
  case $name in -*|*[!0-9A-Za-z@._:-]*) wrong "'$name' in $hosts is no name of a machine";; esac
  whole "the number of slots of $name in $hosts" "${slots:-1}"
  [ -z "$rest" ] || wrong "a line of $hosts has a machine and its slots, but '$rest' came after them"
  echo "$name ${slots:-1}"
done) || exit 2
[ -n "$hostlist" ] || wrong "$hosts names no machine"

# Everything that is started holds the reading end of a pipe whose writing end only this script has. When the script ends, by whatever
# signal, the pipe ends, and each of them stops itself.
folder=$(mktemp -d) && mkfifo "$folder/alive" || exit 1
exec 9<>"$folder/alive"
while_alive='"$@" 3<&- & pid=$!; { cat <&3 >/dev/null; kill $pid 2>/dev/null; } & watch=$!; trap "kill $pid $watch 2>/dev/null" INT TERM HUP; wait $pid; code=$?; kill $watch 2>/dev/null; exit $code'
guarded="exec 3<&0; $while_alive"
started=''
stop() { trap '' INT TERM HUP; exec 9>&-; rm -rf "$folder"; for pid in $started; do wait "$pid" 2>/dev/null; done; }
trap 'stop; exit 130' INT; trap 'stop; exit 143' TERM HUP

sh -c "$guarded" sh "$python" -m distributed.cli.dask_scheduler --host "$host" --port "$port" --dashboard-address 127.0.0.1:8787 <"$folder/alive" 9>&- &
started=$!
scheduler=$!
capped=''
for name in OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS NUMEXPR_NUM_THREADS NUMBA_NUM_THREADS OPENCV_FOR_THREADS_NUM \
    TF_NUM_INTRAOP_THREADS TF_NUM_INTEROP_THREADS; do capped="$capped $name=$cores"; done
resources="slot=1,GB=$gb"
[ "$gpus" = 0 ] || resources="slot=1,gpu=1,GB=$gb"

while read -r name slots; do
  slot=0
  while [ "$slot" -lt "$slots" ]; do
    device=-1
    [ "$gpus" = 0 ] || device=$slot
    remote="exec sh -c $(quote "$guarded") sh env$capped TF_CPP_MIN_LOG_LEVEL=2 CUDA_VISIBLE_DEVICES=$device $(quote "$python") -m distributed.cli.dask_worker"
    remote="$remote tcp://$host:$port --nthreads 1 --no-dashboard --memory-limit ${gb}GiB --death-timeout 120 --local-directory $(quote "$local") --resources $resources"
    $ssh -o BatchMode=yes -o ServerAliveInterval=15 "$name" "$remote" <"$folder/alive" 9>&- &
    started="$started $!"
    slot=$((slot + 1))
  done
done <<LIST
$hostlist
LIST

if [ $# -gt 0 ]; then
  DASK_SCHEDULER_ADDRESS="tcp://$host:$port" "$@" 9>&-
else
  echo "scheduler at tcp://$host:$port; Ctrl-C ends it and its workers" >&2
  wait "$scheduler"
fi
code=$?
stop
exit $code
