# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # one program in several files: variables come from the others
# Sourced by scripts/lab: builds the installed lab host, a disk with a root of Debian packages, the lab's kernel, an initrd and GRUB. Everything is
# made in files: no loop device, no mount on this machine. Two stages: the packages' root as an archive, which is made again only when the list of
# packages changes, and the disk, which is made again when the kernel or anything of tests/lab/installed changes.

installed_host=installed
# What builds it, beside what the lab needs anyway, and what is in it.
installed_needs=(
    mmdebstrap=mmdebstrap grub-mkimage=grub-common /usr/lib/grub/i386-pc/boot.img=grub-pc-bin
)
# Who isn't root needs a range of user numbers for the packages' files, and the look of being root.
[ "$(id -u)" -eq 0 ] || installed_needs+=(newuidmap=uidmap fakeroot=fakeroot)
installed_packages=(systemd-sysv udev kmod pciutils iproute2 procps numactl qemu-system-x86 qemu-utils ovmf e2fsprogs)
# What nobody waits for in the lab, and what would take a terminal that isn't there.
installed_masked=(
    getty@tty1.service serial-getty@ttyS0.service systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-binfmt.service systemd-pstore.service
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-random-seed.service systemd-hwdb-update.service
    systemd-user-sessions.service systemd-ask-password-wall.path systemd-ask-password-console.path dev-hugepages.mount dev-mqueue.mount
    sys-kernel-debug.mount sys-kernel-tracing.mount systemd-tmpfiles-clean.timer systemd-machine-id-commit.service
    systemd-firstboot.service systemd-sysusers.service systemd-sysext.service systemd-logind.service
    networking.service hwclock.service
)
# What udev would load by the names of the emulated machine's parts, of no use to anybody there, and dear to check and start under emulation.
installed_unwanted=(
    i2c_i801 lpc_ich iTCO_wdt joydev psmouse mousedev pcspkr parport_pc ppdev floppy qemu_fw_cfg ccp sev amd64_edac edac_mce_amd
    intel_rapl_common intel_rapl_msr acpi_cpufreq aesni_intel ghash_clmulni_intel sha1_ssse3 sha256_ssse3 sha512_ssse3 polyval_clmulni
    crc32_pclmul crc32c_intel crct10dif_pclmul
)
disk_slack_mib=768

installed_prepared() {
    installed_keys
    [ -z "$(packages_missing "${installed_needs[@]}")" ] && stamped "$root_dir" "$root_key" && stamped "$installed_dir" "$installed_key"
}

# installed_keys: the host file's lines are read already, and go into the disk.
installed_keys() {
    root_dir=$lab_dir/installed-root installed_dir=$lab_dir/installed${kernel_dir#"$lab_dir/kernel"}
    root_key=$(printf '%s\n' "$(installed_suite)" "${installed_packages[@]}" | sha256sum | cut -c1-16)
    installed_key=$(cat "$kernel_dir/release" 2> /dev/null || true)-$root_key-$(
        { hash_of tests/lab/installed tests/lab/initramfs scripts/lib/lab-installed.sh scripts/lib/lab-prepare.sh
            host_lines kernel; host_lines modules; } | sha256sum | cut -c1-16)
}

# The machine's own release: its package sources and its C library, which the programs that are built here need.
installed_suite() { (. /etc/os-release && printf '%s\n' "${VERSION_CODENAME:-stable}"); }

# prepare_installed: after `prepare`, under the same lock.
prepare_installed() {
    ! installed_prepared || return 0
    exec 9> "$lab_dir/lock"
    flock 9
    packages_need "${installed_needs[@]}" || return 1
    installed_keys
    stamped "$root_dir" "$root_key" || into "$root_dir" build_installed_root || return 1
    stamped "$installed_dir" "$installed_key" || into "$installed_dir" build_installed_disk || return 1
    exec 9>&-
}

# build_installed_root DIR: the packages, installed with their own scripts into an archive, from this machine's package sources and by its settings.
build_installed_root() {
    local dir=$1 sources
    mapfile -t sources < <(find /etc/apt/sources.list /etc/apt/sources.list.d \( -name '*.list' -o -name '*.sources' \) 2> /dev/null | LC_ALL=C sort)
    [ ${#sources[@]} -gt 0 ] || { say "no package sources in /etc/apt: the installed host is made of Debian's packages"; return 1; }
    say "installing the packages of the installed host (minutes, once)"
    apt-config dump | grep '^Acquire::' | grep -v IndexTargets > "$dir/apt.conf"
    mmdebstrap --quiet --mode=unshare --variant=essential --format=tar --aptopt="$dir/apt.conf" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt=force-unsafe-io --include="$(IFS=,; echo "${installed_packages[*]}")" \
        "$(installed_suite)" "$dir/root.tar" "${sources[@]}" > "$dir/log" 2>&1 || { tail -n 20 "$dir/log" >&2; return 1; }
    rm "$dir/apt.conf"
    printf '%s\n' "$root_key" > "$dir/stamp"
}

# build_installed_disk DIR: the disk. Files belong to root in it, whoever builds it.
build_installed_disk() {
    local dir=$1 as_root=()
    say "building the disk of the installed host"
    [ "$(id -u)" -eq 0 ] || as_root=(fakeroot)
    installed_files "$dir/files" || return 1
    "${as_root[@]}" bash "$repo/tests/lab/installed/make-root" "$root_dir/root.tar" "$dir/files" "$dir/tree" "$dir/root.img" "$disk_slack_mib" || return 1
    installed_partition "$dir/root.img" "$dir/disk.img" || return 1
    rm -rf "$dir/root.img" "$dir/files"
    printf '%s\n' "$installed_key" > "$dir/stamp"
}

# installed_files DIR: what is laid over the packages' root.
installed_files() {
    local dir=$1 release words unit
    release=$(cat "$kernel_dir/release")
    words=$(host_lines kernel | tr '\n' ' ')
    mkdir -p "$dir"/{boot/grub,etc/{systemd/system/multi-user.target.wants,systemd/system.conf.d,modules-load.d,modprobe.d},usr/lib/lab,var/log/journal}
    cp "$repo"/tests/lab/installed/run "$repo"/tests/lab/initramfs/{lib,hold-kvm.pl} "$(PATH=$PATH:/usr/sbin:/sbin command -v busybox)" "$dir/usr/lib/lab/"
    chmod 755 "$dir/usr/lib/lab/run"
    cp "$repo/tests/lab/installed/lab.service" "$dir/etc/systemd/system/"
    ln -s ../lab.service "$dir/etc/systemd/system/multi-user.target.wants/"
    ln -s /lib/systemd/system/multi-user.target "$dir/etc/systemd/system/default.target"
    for unit in "${installed_masked[@]}"; do ln -s /dev/null "$dir/etc/systemd/system/$unit"; done
    # All other drivers come by udev, as on any machine.
    tr ' ' '\n' <<< "${host_modules[*]} ${host_values[modules.vfio]}" > "$dir/etc/modules-load.d/lab.conf"
    printf 'blacklist %s\n' "${installed_unwanted[@]}" > "$dir/etc/modprobe.d/lab.conf"
    # A busy machine can make a service's start take minutes.
    printf '[Manager]\nDefaultTimeoutStartSec=5min\n' > "$dir/etc/systemd/system.conf.d/lab.conf"
    echo lab > "$dir/etc/hostname"
    echo 67707600000000000000000000006c61 > "$dir/etc/machine-id"
    : > "$dir/etc/fstab"
    cp "$kernel_dir/bzImage" "$dir/boot/vmlinuz-$release"
    installed_modules "$dir" || return 1
    installed_initrd "$dir/boot/initrd.img-$release" || return 1
    cat > "$dir/boot/grub/grub.cfg" << TEXT
set timeout=0
menuentry lab {
    linux /boot/vmlinuz-$release root=LABEL=lab-root $words systemd.show_status=0 systemd.service_watchdogs=0
    initrd /boot/initrd.img-$release
}
TEXT
}

# installed_modules DIR: all modules of the kernel; those of the lab are unpacked and stripped, as checking and parsing them costs seconds under emulation.
installed_modules() {
    local dir=$1 release file plain names
    release=$(cat "$kernel_dir/release")
    mapfile -t names < <(printf '%s\n' "${host_modules[@]}"; host_lines modules | tr ' ' '\n')
    mkdir -p "$dir/usr/lib/modules"
    cp -rL "$kernel_dir/modules" "$dir/usr/lib/modules/$release"
    ln -s usr/lib "$dir/lib"
    for file in $(for name in "${names[@]}"; do modprobe -d "$dir" -S "$release" --show-depends "$name" 2> /dev/null; done | awk '$1 == "insmod" {print $2}' | sort -u); do
        plain=${file%%.ko*}.ko
        module_file "$file" "$plain.new" && rm "$file" && mv "$plain.new" "$plain" || return 1
    done
    depmod -b "$dir" "$release" && rm "$dir/lib"
}

# installed_initrd FILE: what finds and mounts the root; all other drivers are udev's affair.
installed_initrd() {
    local tree=$1.tree
    mkdir -p "$tree/bin" "$tree/dev"
    cp "$(PATH=$PATH:/usr/sbin:/sbin command -v busybox)" "$tree/bin/busybox"
    install -m 755 "$repo/tests/lab/installed/init" "$tree/init"
    modules_into "$kernel_dir" "$tree/lab" ahci sd_mod ext4 || return 1
    pack "$tree" "$1" && rm -rf "$tree"
}

# installed_partition ROOT DISK: ROOT as first partition, at 1 MiB, behind GRUB, which lies in the boot sector and the gap after it.
installed_partition() {
    local root=$1 disk=$2 sectors boot=/usr/lib/grub/i386-pc
    sectors=$(($(stat -c %s "$root") / 512))
    grub-mkimage -O i386-pc -d "$boot" -p '(hd0,msdos1)/boot/grub' -o "$disk.core" biosdisk part_msdos ext2 normal linux || return 1
    [ "$(stat -c %s "$disk.core")" -lt $((2047 * 512)) ] || { say "GRUB is too large for the gap before the first partition"; return 1; }
    truncate -s $(((sectors + 2048) * 512)) "$disk"
    head -c 440 "$boot/boot.img" | dd of="$disk" conv=notrunc status=none
    # One entry of the partition table: bootable, type 83, first sector and count as little-endian words; then the sector's signature.
    { printf '\200\376\377\377\203\376\377\377'; little_endian 2048; little_endian "$sectors"; } | dd of="$disk" bs=1 seek=446 conv=notrunc status=none
    printf '\125\252' | dd of="$disk" bs=1 seek=510 conv=notrunc status=none
    dd if="$disk.core" of="$disk" bs=512 seek=1 conv=notrunc status=none
    dd if="$root" of="$disk" bs=1M seek=1 conv=notrunc,sparse status=none
    rm "$disk.core"
}

little_endian() {
    local shift
    # shellcheck disable=SC2059  # the format is the byte
    for shift in 0 8 16 24; do printf "\\$(printf %03o $((($1 >> shift) & 255)))"; done
}
