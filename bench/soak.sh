#!/usr/bin/env bash
# soak.sh - whether a router's memory grows under load: two hosts in a lab, TCP both ways and small UDP packets for some minutes,
# and what both routers hold at every half minute. Fails if they hold more at the end than after the first minute.
#
#   bench/soak.sh [MINUTES]      10 unless told otherwise; needs root and iperf3; $WEFT is the program, $RATE (500M) what TCP sends a second
set -eu
weft=${WEFT:-$(dirname "$(readlink -f "$0")")/../target/release/weft}
log=$(mktemp) minutes=${1:-10} rate=${RATE:-500M} name=soak-$$
"$weft" lab up --name $name --hosts 2 --containers 1 >/dev/null
trap 'kill $servers $clients 2>/dev/null || :; rm -f $log; "$weft" lab down --name $name >/dev/null' EXIT
at() { local place=$1; shift; "$weft" lab exec --name $name "$place" -- "$@"; }
servers='' clients=''
for port in 5201 5202; do at c2 iperf3 -s -p $port >/dev/null 2>&1 & servers+=" $!"; done
sleep 1
seconds=$((minutes * 60))
at c1 iperf3 -c c2 -p 5201 -t $seconds -b "$rate" --bidir >>$log 2>&1 & clients+=" $!"
at c1 iperf3 -c c2 -p 5202 -t $seconds -u -b 5M -l 64 >>$log 2>&1 & clients+=" $!"

# Kilobytes of a router: all it has in memory, and what of it is its own.
held() { at "$1" sh -c 'awk "/^Vm(RSS|HWM)|^RssAnon/ {printf \"%s \", \$2} END {print \"\"}" /proc/$(cat /run/weft/weft.pid)/status'; }
first='' own=''
for half in $(seq 0 $((minutes * 2))); do
  own=0
  line=''
  for host in host1 host2; do
    read -r most all anonymous < <(held $host)
    own=$((own + anonymous)); line+="  $host: $all kB (at most $most), own $anonymous kB"
  done
  printf '%4d s%s\n' $((half * 30)) "$line"
  [ $half = 2 ] && first=$own
  [ $half = $((minutes * 2)) ] || sleep 30
done
wait $clients || { cat $log; exit 1; }
grep receiver $log
# What allocators keep back and forth is not growth.
if [ $own -gt $((first + first / 10 + 256)) ]; then echo "grew from $first kB to $own kB"; exit 1; fi
echo "did not grow: $first kB after a minute, $own kB at the end, both routers together"
