#!/bin/sh
# Sends a load out of a NIC with the kernel's pktgen, one of the NIC's queues per CPU.
#
#   send.sh -i IFACE -d MAC [-q QUEUES] [-n FRAMES] [-r PPS] [-s BYTES] [-f FLOWS] [-m MAC]
#
#   -i  interface to send from
#   -d  MAC address of the sensor's interface
#   -q  queues and CPUs to send with (default 1)
#   -n  frames of each queue (default 10000000; 0: until Ctrl-C)
#   -r  frames a second of all queues together (default: as many as they can)
#   -s  bytes of a frame, its checksum (4 bytes) included (default 64)
#   -f  flows of all queues together, by their source address (default 65536)
#   -m  source MAC, the mark by which the reader counts these frames (default 02:00:00:00:00:01)
#
# pktgen makes UDP only. Prints what each queue sent. Needs root.
set -eu
# shellcheck source=SCRIPTDIR/common.sh
. "${0%/*}/common.sh"

interface='' target='' queues=1 count=10000000 rate=0 size=64 flows=65536 mark=02:00:00:00:00:01
while getopts i:d:q:n:r:s:f:m: option; do
	case $option in
	i) interface=$OPTARG ;;
	d) target=$OPTARG ;;
	q) queues=$OPTARG ;;
	n) count=$OPTARG ;;
	r) rate=$OPTARG ;;
	s) size=$OPTARG ;;
	f) flows=$OPTARG ;;
	m) mark=$OPTARG ;;
	*) exit 2 ;;
	esac
done
if [ -z "$interface" ] || [ -z "$target" ]; then
	fail "-i IFACE and -d MAC are needed"
fi
[ "$queues" -ge 1 ] || fail "-q takes at least 1"
per_queue=$((flows / queues))
if [ "$per_queue" -lt 1 ] || [ "$per_queue" -gt 65536 ]; then
	fail "-f takes 1 to 65536 flows a queue"
fi

tell pgctrl reset
queue=0
for cpu in $(threads); do
	[ "$queue" -lt "$queues" ] || break
	device=$interface@$queue
	tell "kpktgend_$cpu" rem_device_all
	tell "kpktgend_$cpu" add_device "$device"
	tell "$device" count "$count"
	# pktgen counts without the checksum of the frame.
	tell "$device" pkt_size $((size - 4))
	# One buffer for each frame: its addresses differ.
	tell "$device" clone_skb 0
	tell "$device" burst 1
	tell "$device" delay 0
	[ "$rate" -eq 0 ] || tell "$device" ratep $((rate / queues))
	tell "$device" queue_map_min "$queue"
	tell "$device" queue_map_max "$queue"
	tell "$device" dst_mac "$target"
	tell "$device" src_mac "$mark"
	# 198.18.0.0/15 is for benchmarks (RFC 2544). Each queue has a source port of its own.
	last=$((per_queue - 1))
	tell "$device" src_min 198.18.0.0
	tell "$device" src_max "198.18.$((last / 256)).$((last % 256))"
	tell "$device" dst 198.19.0.2
	tell "$device" udp_src_min $((1024 + queue))
	tell "$device" udp_src_max $((1024 + queue))
	tell "$device" udp_dst_min 53
	tell "$device" udp_dst_max 53
	queue=$((queue + 1))
done
[ "$queue" -eq "$queues" ] || fail "$queues queues, but pktgen has threads on $queue CPUs only"

# Returns when all frames are sent, or after Ctrl-C.
trap : INT
tell pgctrl start || true
queue=0
while [ "$queue" -lt "$queues" ]; do
	echo "== $interface@$queue"
	grep -E 'pkts-sofar|errors|pps|^Result' "$PKTGEN_PROC/$interface@$queue" || true
	queue=$((queue + 1))
done
