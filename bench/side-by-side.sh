#!/usr/bin/env bash
# side-by-side.sh - every case of the table in docs/performance.md, weft beside its peers, and what became of the targets.
#
#   bench/side-by-side.sh HARNESS [-r ROUNDS] [-o FOLDER] [-k] [-q] [PART...]
#
#     HARNESS   the folder of overlays.sh and measure.py, which make the hosts and measure
#     -r        interleaved rounds of each part (3; the part trusted always gets two more)
#     -o        where results are kept, one JSON line a run (bench/results/DATE)
#     -k        keep what the kernel allows for TCP, as the harness alone does (see below)
#     -q        short tests, to see that everything works; the figures are worth little
#     PART      on        underlay with offloads: throughput, small packets, latency, processor time, memory
#               off       every packet on the wire is at most 1500 bytes; also without GRO, and with 0.1 % loss
#               loss      1 % and 5 % loss
#               trusted   the fast datapath beside the kernel's VXLAN at the same MTU
#               all of them unless named
#
# As root, and alone on the machine: both hosts and the load share its processors. While it runs, cubic is among
# what the kernel allows for TCP, unless -k; then that is as it was. Peers that are not installed are left out, and said so.
# $WEFT is the program (target/release/weft); build it first: cargo build --release --locked
set -eu
here=$(dirname "$(readlink -f "$0")")
rounds=3 folder="$here/results/$(date +%Y-%m-%d-%H%M)" keep='' quick='' parts=() harness=''
while [ $# -gt 0 ]; do
  case $1 in
    -r) rounds=$2; shift ;;
    -o) folder=$2; shift ;;
    -k) keep=yes ;;
    -q) quick=-q ;;
    on | off | loss | trusted) parts+=("$1") ;;
    -*) echo "side-by-side.sh: no option $1; the head of this file says what there is" >&2; exit 2 ;;
    *) harness=$1 ;;
  esac
  shift
done
[ -x "$harness/overlays.sh" ] || { echo "side-by-side.sh: the first argument must be the folder of overlays.sh" >&2; exit 2; }
[ ${#parts[@]} -gt 0 ] || parts=(on off loss trusted)
export PEERS=${PEERS:-$HOME/.cache/weft-bench}
mkdir -p "$folder"

# The harness has all TCP be cubic. Namespaces may choose only what the kernel allows to all, and where cubic is not among
# that, they would silently keep the machine's default; with one that paces itself (bbr) that is another measurement.
allowed=/proc/sys/net/ipv4/tcp_allowed_congestion_control
before=$(<"$allowed")
if [[ -z $keep && " $before " != *" cubic "* ]]; then
  trap 'echo "$before" >"$allowed"' EXIT
  echo "$before cubic" >"$allowed"
fi

# The peers of this list that are installed.
installed() {
  local peer
  for peer; do
    case $peer in
      vpncloud*) [ -x "$PEERS/bin/vpncloud" ] ;;
      boringtun) [ -x "$PEERS/bin/boringtun-cli" ] ;;
      easytier) [ -x "$PEERS/bin/easytier-core" ] ;;
      fastd*) command -v fastd >/dev/null ;;
      tinc) command -v tincd >/dev/null ;;
      nebula) command -v nebula >/dev/null ;;
    esac && echo "$peer" || echo "side-by-side.sh: $peer is not installed, left out" >&2
  done
}

# measure PART PROFILE ROUNDS CONTENDER...
measure() {
  local part=$1 profile=$2 rounds=$3
  shift 3
  echo "== $part: $*"
  "$harness/overlays.sh" -x "$here/weft.sh" $quick -p "$profile" -r "$rounds" -o "$folder/$part.jsonl" "$@"
}

for part in "${parts[@]}"; do
  rm -f "$folder/$part"*.jsonl
  case $part in
    on) measure on on "$rounds" plain vxlan weft $(installed vpncloud fastdsalsa tinc nebula boringtun easytier) ;;
    off) measure off off "$rounds" vxlan weft weft_nogro weft_loss1 $(installed vpncloud fastdsalsa tinc) ;;
    loss)
      # With loss, a lost ping ends the latency test; it is short, so that it does not cost much.
      for loss in loss10 loss50; do
        DUR='{"tcp1": 10, "tcp4": 2, "udp": 1, "pp": 1}' measure "$loss" off "$rounds" weft_$loss $(installed vpncloud_$loss fastdsalsa_$loss)
      done ;;
    trusted) measure trusted on $((rounds + 2)) vxlan1376 weftfast ;;
  esac
done
python3 "$here/targets.py" "$folder"
