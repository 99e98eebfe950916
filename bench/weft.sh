# weft.sh - weft as contenders of the side-by-side benchmark: overlays.sh -x weft.sh ... weft weftfast
#
#   weft       encrypted, defaults and --password only
#   weftfast   the same with --trusted-subnets for the underlay: the kernel's VXLAN carries unicast frames
#   vxlan1376  the kernel's VXLAN as set up by hand, at weft's default MTU, to compare weftfast with
#
# and, of these and others, variants whose underlay is worse (with -p off, so that each packet is one on the wire):
#
#   NAME_nogro   the receiving side puts nothing together either
#   NAME_lossN   the same, and N in 1000 packets are lost each way
#
# The binary is $WEFT, or target/release/weft beside this file. Sockets and state are moved, and Docker is left alone, because both
# hosts share one file system (without Docker nothing is started for it anyway); nothing else is.

WEFT=${WEFT:-$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../target/release/weft}
WEFT_MTU=1376   # weft's default; on an IPv4 underlay of 1500 bytes at most 1409 would fit

weft_() {
  local s
  for s in A B; do
    mkdir -p $W/weft$s
    spawn $s $WEFT launch --foreground --password "a password for the benchmark" --nickname host$s \
      --no-plugin --no-proxy --socket $W/weft$s/weft.sock --state-dir $W/weft$s/state "$@" $([ $s = B ] && uip A)
  done
  for s in A B; do
    waitfile $W/weft$s/weft.sock || return 1
    weft_waits $s || return 1
    hx $s $WEFT --socket $W/weft$s/weft.sock attach $(cip $s)/24 netns:${C[$s]} || return 1
  done
  echo "weft launch --password … $*; container MTU $(cx A cat /sys/class/net/ethwe/mtu)" | tee -a $W/weft.flags
  SETTLE=3
}

# Both ends are connected, and rings born apart have met.
weft_waits() {
  local i
  for i in $(seq 100); do
    hx $1 $WEFT --socket $W/weft$1/weft.sock status connections 2>/dev/null | grep -q established && return 0
    sleep 0.1
  done
  hx $1 $WEFT --socket $W/weft$1/weft.sock status connections; return 1
}

up_weft() { weft_; }
up_weftfast() { weft_ --trusted-subnets 192.168.99.0/24; }

up_vxlan1376() { local s; for s in A B; do
  ip -n ${H[$s]} link add vx0 type vxlan id 42 local $(uip $s) dstport 4789 nolearning
  hx $s bridge fdb append 00:00:00:00:00:00 dev vx0 dst $(uip $(other $s)); l2 $s vx0 1376; done; }

# The underlay of both hosts, worse: no merging, and this many packets in 1000 lost.
weft_worse() {
  local s
  for s in A B; do
    hx $s ethtool -K u0 gro off >/dev/null 2>&1
    [ $1 = 0 ] && continue
    hx $s nft "add table inet worse; add chain inet worse in { type filter hook prerouting priority -400; }" || return 1
    hx $s nft "add rule inet worse in iifname u0 numgen random mod 1000 < $1 drop" || return 1
  done
}

for peer in weft weftfast vxlan vxlan1376 vpncloud fastdsalsa fastdnull tinc p_seg_aes256 p_segdrain_aes256; do
  eval "up_${peer}_nogro() { weft_worse 0 && up_$peer; }"
  for loss in 1 10 50; do eval "up_${peer}_loss$loss() { weft_worse $loss && up_$peer; }"; done
done
