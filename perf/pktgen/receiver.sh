#!/bin/sh
# Prepares the NIC of the measured host, or shows the counters that tell where frames were lost.
#
#   receiver.sh prepare IFACE QUEUES   queues, offloads, interrupts; each command is shown before it runs
#   receiver.sh counters IFACE         before and after a load: what the NIC, the driver and the stack lost
#
# SYS_PROC (default /proc) and DRY_RUN=1 (show the commands, run none) are for trying it out.
set -eu

SYS_PROC=${SYS_PROC:-/proc}

fail() {
	echo "${0##*/}: $*" >&2
	exit 1
}

do_it() {
	echo "+ $*"
	[ "${DRY_RUN:-0}" = 1 ] || "$@"
}

pin() {
	echo "+ echo $1 > $2"
	[ "${DRY_RUN:-0}" = 1 ] || echo "$1" >"$2"
}

prepare() {
	interface=$1 queues=$2
	# Frames as they came: nothing put together, nothing held back.
	do_it ethtool -K "$interface" gro off lro off ntuple off rxvlan off
	# As many queues as workers, and both directions of a flow in the same one.
	do_it ethtool -L "$interface" combined "$queues"
	key=$(printf '6D:5A:%.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20)
	do_it ethtool -X "$interface" hkey "${key%:}" equal "$queues"
	# No pause frames: a sensor must lose frames rather than slow the network down.
	do_it ethtool -A "$interface" rx off tx off
	do_it ethtool -C "$interface" adaptive-rx off rx-usecs 50
	# One queue, one CPU; irqbalance would undo it.
	if [ -d /run/irqbalance ]; then
		do_it systemctl stop irqbalance
	fi
	cpu=0
	irqs=$(sed -En "s/^ *([0-9]+):.*[ -]$interface(-.*)?\$/\1/p" "$SYS_PROC/interrupts")
	for irq in $irqs; do
		[ "$cpu" -lt "$queues" ] || break
		pin "$cpu" "$SYS_PROC/irq/$irq/smp_affinity_list"
		cpu=$((cpu + 1))
	done
	[ "$cpu" -gt 0 ] || fail "$interface has no interrupts in $SYS_PROC/interrupts"
	# Time for the stack to take frames out of the NIC, in frames and microseconds.
	pin 600 "$SYS_PROC/sys/net/core/netdev_budget"
	pin 8000 "$SYS_PROC/sys/net/core/netdev_budget_usecs"
}

counters() {
	interface=$1
	echo "== NIC and driver (ethtool -S $interface): what it missed, dropped or had no buffer for"
	do_it ethtool -S "$interface" | grep -Ei 'miss|drop|discard|no_buf|fifo|rx_packets' || true
	echo "== interface"
	do_it ip -s -s link show "$interface"
	echo "== stack, one line a CPU (third column: no time left, in hexadecimal)"
	cat "$SYS_PROC/net/softnet_stat"
}

case ${1:-} in
prepare)
	[ $# -eq 3 ] || fail "prepare takes IFACE and QUEUES"
	prepare "$2" "$3"
	;;
counters)
	[ $# -eq 2 ] || fail "counters takes IFACE"
	counters "$2"
	;;
*)
	sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
