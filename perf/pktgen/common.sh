# shellcheck shell=sh
# What the scripts of this folder share; read by them, not run.

# The control folder of pktgen. A test puts an ordinary folder in its place.
PKTGEN_PROC=${PKTGEN_PROC:-/proc/net/pktgen}

fail() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# tell FILE COMMAND...: writes one command to a control file and checks what pktgen made of it.
tell() {
	file=$PKTGEN_PROC/$1
	shift
	[ -e "$file" ] || fail "$file is missing: is the module loaded (modprobe pktgen)?"
	echo "$*" >>"$file" || fail "cannot write '$*' to $file"
	result=$(grep '^Result:' "$file" | tail -n 1)
	case $result in
	'' | 'Result: OK'* | 'Result: NA'*) ;;
	*) fail "'$*' in $file: $result" ;;
	esac
}

# threads: the CPUs that may send, as a list of numbers.
threads() {
	for thread in "$PKTGEN_PROC"/kpktgend_*; do
		[ -e "$thread" ] || fail "$PKTGEN_PROC has no threads: is the module loaded (modprobe pktgen)?"
		echo "${thread##*_}"
	done
}
