# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # one program in several files: variables come from the others
# Sourced by scripts/lab: boots a lab host and runs a command in it.

run_dir=
kept=
died_booting=
run_pid=
readers=()

# run_files MODE HOST CMD...: what the host reads at its start, as a second archive behind the prepared one.
run_files() {
    local mode=$1 host=$2 tree=$run_dir/tree
    shift 2
    mkdir -p "$tree/lab"
    printf '%s' "$repo" > "$tree/lab/repo"
    printf '%s' "$(realpath "$guest_dir")" > "$tree/lab/guest-dir"
    printf '%s' "$bin_dir" > "$tree/lab/bin-dir"
    printf '%s' "$(realpath "$kernel_dir/modules")" > "$tree/lab/modules-dir"
    printf '%s' "$mode" > "$tree/lab/mode"
    # A terminal without a size (0 0) gets the usual one.
    { stty size < /dev/tty | grep -v '^0' || echo 24 80; } 2> /dev/null > "$tree/lab/tty"
    case $repo/ in /tmp/* | /run/* | /lab/*) echo yes ;; esac > "$tree/lab/hidden"
    host_lines modules > "$tree/lab/load"
    host_lines setup | sed 's/.*/{ &\n} || setup_failed=yes/' > "$tree/lab/setup"
    printf '%s\0' /usr/bin/env -i \
        PATH=/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root LANG=C.UTF-8 \
        "TERM=${TERM:-dumb}" "GPUVM_LAB_HOST=$host" "${run_env[@]}" "$@" > "$tree/lab/argv"
    if [ "$host" = "$installed_host" ]; then
        mv "$tree/lab" "$run_dir/lab" && rmdir "$tree"
        return
    fi
    pack "$tree" "$run_dir/run.cpio"
    cat "$host_dir/initrd" "$run_dir/run.cpio" > "$run_dir/initrd"
    rm -r "$tree" "$run_dir/run.cpio"
}

# run_disk: the installed host's disk, as changes over the prepared one. The folder of the run holds a link or the changes themselves.
run_disk() {
    [ "$host" = "$installed_host" ] || return 0
    local disk=$run_dir/root.qcow2
    if [ -n "$keep_disk" ]; then
        keep_disk=$(realpath "$keep_disk")
        ln -s "$keep_disk" "$disk"
        [ ! -e "$keep_disk" ] || return 0
        disk=$keep_disk
    fi
    qemu-img create -q -f qcow2 -b "$(realpath "$installed_dir")/disk.img" -F raw "$disk" || die 125 "no disk for the installed host"
}

# run_qemu_args MODE: fills $qemu_args.
run_qemu_args() {
    local line words
    qemu_args=(-name gpuvm-lab -display none -monitor none)
    while read -r line; do
        read -ra words <<< "$line"
        qemu_args+=("${words[@]}")
    done < <(host_lines qemu)
    # shellcheck disable=SC2054  # the commas are QEMU's
    qemu_args+=(
        -serial file:console.log
        -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap
        -device virtio-9p-pci,bus=pcie.0,addr=0x1e,fsdev=root,mount_tag=root
        -device virtio-serial-pci,id=ports,bus=pcie.0,addr=0x1d
        -chardev file,id=out,path=out -device virtserialport,bus=ports.0,nr=1,chardev=out,name=lab.out
        -chardev file,id=err,path=err -device virtserialport,bus=ports.0,nr=2,chardev=err,name=lab.err
        -chardev file,id=status,path=status -device virtserialport,bus=ports.0,nr=3,chardev=status,name=lab.status
    )
    # What is started from memory ends at a reboot; what is installed boots again, and is told by SMBIOS where its run lies.
    if [ "$host" = "$installed_host" ]; then
        qemu_args+=(-smbios "type=1,version=${run_dir//,/,,}")
    else
        qemu_args+=(-no-reboot -kernel "$kernel_dir/kernel" -initrd initrd -append "$(host_lines kernel | tr '\n' ' ')")
    fi
    # shellcheck disable=SC2054
    [ "$1" != shell ] || qemu_args+=(-chardev stdio,id=tty,signal=off -device virtconsole,bus=ports.0,nr=4,chardev=tty)
}

# A signal to us ends our own QEMU, by its process id, and nothing else. `timeout` passes the signal on and reaps it.
run_stop() {
    trap '' INT TERM HUP
    [ -z "$run_pid" ] || kill -TERM "$run_pid" 2> /dev/null || true
    [ -z "$run_pid" ] || wait "$run_pid" 2> /dev/null || true
    run_clean
    exit "$1"
}

run_clean() { [ -z "$run_dir" ] || rm -rf "$run_dir"; }

# A failed host's folder is kept for its console; old ones go, so that a bad day doesn't fill the disk.
run_keep() {
    rm -f "$run_dir"/*.img "$run_dir"/*.qcow2 "$run_dir"/initrd "$run_dir"/out "$run_dir"/err
    mkdir -p "$lab_dir/failed"
    mv "$run_dir" "$lab_dir/failed/"
    find "$lab_dir/failed" -mindepth 1 -maxdepth 1 -printf '%T@ %p\n' | sort -rn | tail -n +11 | cut -d' ' -f2- | xargs -r -d '\n' rm -rf
    kept=$lab_dir/failed/${run_dir##*/}
}

# run_start MODE SECONDS: starts QEMU in the background. The fifo readers come first, because opening a fifo waits for the other end.
run_start() {
    local out=$run_dir/qemu.log in=/dev/null
    mkfifo "$run_dir/out" "$run_dir/err"
    cat "$run_dir/out" & readers=("$!")
    cat "$run_dir/err" >&2 & readers+=("$!")
    [ "$1" != shell ] || in=/dev/tty out=/dev/tty
    # If this script is killed outright, QEMU goes with it.
    (cd "$run_dir" && exec setpriv --pdeathsig TERM timeout --foreground --kill-after=5 "$2" "$qemu" "${qemu_args[@]}") \
        < "$in" > "$out" 2> "$run_dir/qemu.log" &
    run_pid=$!
}

# run_host MODE HOST SECONDS CMD...: the whole run of the host that was read; its return value is the program's exit status.
run_host() {
    local mode=$1 host=$2 seconds=$3 code=0
    shift 3
    command -v "$qemu" > /dev/null || die 125 "no emulator '$qemu'"
    qemu=$(realpath "$(command -v "$qemu")")
    mkdir -p "$lab_dir/run"
    trap run_clean EXIT
    trap 'run_stop 130' INT
    trap 'run_stop 143' TERM
    trap 'run_stop 129' HUP
    # By its real path: the installed host looks for it below the machine's root, where a link would lead elsewhere.
    run_dir=$(realpath "$(mktemp -d "$lab_dir/run/$(date +%H%M%S)-XXXXXX")")
    run_files "$mode" "$host" "$@"
    host_disks "$run_dir"
    run_disk
    run_qemu_args "$mode"
    run_start "$mode" "$seconds"
    # Bash would report a QEMU that aborted in words of its own.
    { wait "$run_pid" || code=$?; } 2> /dev/null
    run_pid=
    # QEMU is gone, so the fifos end. If it never opened them (bad arguments), nobody will write there: the readers are ours to end.
    [ -e "$run_dir/status" ] || kill "${readers[@]}" 2> /dev/null || true
    wait "${readers[@]}" || true
    [ "$mode" != shell ] || stty sane < /dev/tty
    run_verdict "$code" "$seconds"
}

# run_verdict CODE SECONDS: CODE is QEMU's (124 = timeout); the command's own status came through its port.
run_verdict() {
    local word='' status=''
    read -r word status < <(grep -a '^exit ' "$run_dir/status" 2> /dev/null) || true
    # A host that boots again by itself hides its own death, of which the command then knows nothing.
    if [ "$word" = exit ] && [ "$status" != 0 ] && [ "$host" = "$installed_host" ] && grep -qa 'Oops: int3' "$run_dir/console.log"; then
        run_keep
        say "the emulated kernel died in one of the boots (Oops: int3), and the command failed with $status; kept: $kept"
        return 125
    fi
    if [ "$word" = exit ]; then
        [ "${GPUVM_LAB_TIMES:-0}" = 0 ] || run_times
        run_clean
        return "$status"
    fi
    run_keep
    if [ "$1" -eq 124 ] || [ "$1" -eq 137 ]; then
        say "timeout: not done after $2 s; the console is kept in $kept/console.log"
        return 124
    fi
    # The emulation loses a rewrite of the kernel's own code now and then, and a busy machine makes its clock wrong (tests/lab/README.md, "Findings").
    if ! grep -qa '^started' "$kept/status" 2> /dev/null &&
        grep -qaE 'Oops: int3|lab host: its clock is wrong' "$kept/console.log" 2> /dev/null; then
        died_booting=yes
        return 125
    fi
    run_explain "$1"
    return 125
}

run_explain() {
    say "the lab host failed (QEMU ended with $1); the end of its console:"
    tail -n 25 "$kept/console.log" >&2 2> /dev/null || true
    tail -n 5 "$kept/qemu.log" >&2 2> /dev/null || true
    if grep -q 'tcg_handle_interrupt: assertion failed: (bql_locked())' "$kept/qemu.log"; then
        say "this is a known fault of QEMU's emulation: UEFI firmware (OVMF) as guest under KVM inside the emulated host makes the outer QEMU abort."
        say "In the lab give such a guest accel = \"tcg\", or firmware = \"bios\" or a direct kernel boot with KVM."
    fi
    say "kept: $kept"
}

# The stages of the boot, in seconds of the host's own uptime.
run_times() { sed -n 's/^stage \(.*\) \([0-9.]*\)$/lab: \2 s \1/p' "$run_dir/status" >&2; }
