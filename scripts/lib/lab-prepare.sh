# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # one program in several files: variables come from the others
# Sourced by scripts/lab: gets the kernel, packs the lab host's initramfs and the guest. Each product is built beside its place and renamed
# into it, and carries a stamp of what it was made from: an interrupted run leaves nothing half done, a second one finds nothing to do.

# What the lab uses, and the Debian package that has it.
lab_needs=(
    qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils /usr/share/OVMF=ovmf busybox=busybox-static cpio=cpio xz=xz-utils zstd=zstd objcopy=binutils
    depmod=kmod mkfs.ext4=e2fsprogs mcopy=mtools ip=iproute2 setpci=pciutils numactl=numactl
    perl=perl-base
)
kernel_metas=(linux-image-6.12-amd64 linux-image-amd64 linux-image-generic)
host_modules=(9pnet_virtio 9p overlay)
guest_modules=(nvme evdev button pvpanic-pci)

# into DIR CMD...: runs CMD with a fresh folder as last argument and makes it DIR when CMD succeeded.
into() {
    local dir=$1 new old
    shift
    mkdir -p "$(dirname "$dir")"
    new=$(mktemp -d "$dir.new.XXXXXX")
    chmod 755 "$new"
    "$@" "$new" || { rm -rf "$new"; return 1; }
    old=$new.old
    [ ! -e "$dir" ] || mv "$dir" "$old"
    mv "$new" "$dir"
    rm -rf "$old"
}

# newest_kernel META...: the real package behind the first meta package that the machine's sources know.
newest_kernel() {
    local meta name
    for meta in "$@"; do
        name=$(apt-cache depends --no-recommends --no-suggests "$meta" 2> /dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
        [ -z "$name" ] || { printf '%s\n' "$name"; return; }
    done
    return 1
}

# kernel_package NAME DIR: downloads a kernel package (and, where they are split off, its modules) and unpacks it: nothing is installed.
kernel_package() {
    local name=$1 dir=$2 part
    mkdir -p "$dir/deb" && chmod 777 "$dir/deb"
    say "fetching $name"
    for part in "$name" "${name/linux-image-/linux-modules-}" "${name/linux-image-/linux-modules-extra-}"; do
        apt-cache show "$part" > /dev/null 2>&1 || continue
        (cd "$dir/deb" && apt-get -qq download "$part" 2> "$dir/apt.log") || { cat "$dir/apt.log" >&2; return 1; }
    done
    for part in "$dir"/deb/*.deb; do dpkg -x "$part" "$dir/root" || return 1; done
    rm -rf "$dir/deb" "$dir/apt.log"
    kernel_adopt "$(echo "$dir"/root/boot/vmlinuz-*)" "$dir"
}

# kernel_adopt IMAGE DIR: fills DIR with kernel, bzImage, release and modules (empty if the kernel has none), for an image with its modules in DIR/root.
kernel_adopt() {
    local image=$1 dir=$2 release
    release=$(kernel_release "$image") || return 1
    if [ -d "$dir/root/lib/modules/$release" ]; then
        depmod -b "$dir/root" "$release" || return 1
        ln -s "root/lib/modules/$release" "$dir/modules"
    else
        mkdir "$dir/modules"
    fi
    kernel_image "$image" "$dir/kernel" || return 1
    cp "$image" "$dir/bzImage" || return 1
    printf '%s\n' "$release" > "$dir/release"
}

# kernel_release BZIMAGE: the release that the image's header names (a pointer at 0x20e, relative to 0x200).
kernel_release() {
    local offset text
    [ "$(od -An -c -j 514 -N 4 "$1" | tr -d ' ')" = HdrS ] || { say "$1 isn't a bzImage"; return 1; }
    offset=$(od -An -tu2 -j 526 -N 2 "$1")
    text=$(tail -c "+$((offset + 513))" "$1" 2> /dev/null | head -c 256 | tr '\0' '\n' | head -n 1) || true
    printf '%s\n' "${text%% *}"
}

# kernel_given FILE DIR: what --kernel names, brought into DIR.
kernel_given() {
    local file=$1 dir=$2 image release from
    mkdir -p "$dir/root/lib/modules"
    case $file in *.deb) dpkg -x "$file" "$dir/root" && image=$(echo "$dir"/root/boot/vmlinuz-*) ;; *) image=$file ;; esac
    [ ! -d "$file" ] || image=$(echo "$file"/boot/vmlinuz-*)
    release=$(kernel_release "$image") || return 1
    for from in "$(dirname "$image")/../lib/modules/$release" "/lib/modules/$release"; do
        [ -d "$dir/root/lib/modules/$release" ] || [ ! -d "$from" ] || cp -r "$from" "$dir/root/lib/modules/"
    done
    kernel_adopt "$image" "$dir"
}

# kernel_image BZIMAGE OUT: the ELF image inside, which QEMU starts through PVH: under emulation the kernel's own unpacking is the dearest
# part of the start. A kernel without an ELF or a PVH entry (CONFIG_PVH) is used as it is.
kernel_image() {
    local in=$1 out=$2 magic tool offset
    for tool in zstd xz gzip; do
        case $tool in zstd) magic='\x28\xb5\x2f\xfd' ;; xz) magic='\xfd7zXZ\x00' ;; gzip) magic='\x1f\x8b\x08' ;; esac
        # Only the first few places count: the payload lies near the start.
        for offset in $(LC_ALL=C grep -aboP "$magic" "$in" | head -n 4 | cut -d: -f1); do
            tail -c "+$((offset + 1))" "$in" 2> /dev/null | "$tool" -dcq > "$out.elf" 2> /dev/null || true
            if readelf -n "$out.elf" 2> /dev/null | grep -q 0x00000012; then
                objcopy --strip-debug "$out.elf" "$out" && rm "$out.elf"
                return
            fi
        done
    done
    rm -f "$out.elf"
    cp "$in" "$out"
}

# module_file KO OUT: unpacks a module and drops its signature, debug data and BTF: checking and parsing these costs seconds under emulation.
module_file() {
    case $1 in
        *.xz) xz -dc "$1" > "$2" ;;
        *.zst) zstd -dcq "$1" > "$2" ;;
        *.gz) gzip -dc "$1" > "$2" ;;
        *) cp "$1" "$2" ;;
    esac
    objcopy --strip-debug --remove-section=.BTF "$2"
}

# modules_into KERNELDIR DIR NAME...: DIR/modules/*.ko, and DIR/deps/NAME naming the files to load in order (empty if built in).
modules_into() {
    local kernel=$1 dir=$2 release name file ko
    shift 2
    release=$(cat "$kernel/release")
    mkdir -p "$dir/modules" "$dir/deps"
    for name in "$@"; do
        modprobe -d "$kernel/root" -S "$release" --show-depends "$name" 2> /dev/null | awk '$1 == "insmod" && !seen[$2]++ {print $2}' > "$dir/list"
        : > "$dir/deps/$name"
        while read -r file; do
            ko=${file##*/} ko=${ko%%.ko*}.ko
            echo "$ko" >> "$dir/deps/$name"
            [ -e "$dir/modules/$ko" ] || module_file "$file" "$dir/modules/$ko" || return 1
        done < "$dir/list"
    done
    rm "$dir/list"
}

# pack DIR OUT: an uncompressed cpio, because unpacking is dear under emulation.
pack() { (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0) > "$2"; }

all_host_modules() { cat "$hosts_dir"/* | sed -n 's/^modules\.[a-z0-9-]*: *//p' | tr ' ' '\n' | sort -u; }

build_host() {
    local dir=$1 tree=$1/tree names
    mapfile -t names < <(printf '%s\n' "${host_modules[@]}"; all_host_modules)
    mkdir -p "$tree/bin" "$tree/lab" "$tree/dev"
    cp "$(PATH=$PATH:/usr/sbin:/sbin command -v busybox)" "$tree/bin/busybox"
    install -m 755 "$repo/tests/lab/initramfs/init" "$tree/init"
    cp "$repo"/tests/lab/initramfs/{rc,lib,hold-kvm.pl} "$tree/lab/"
    modules_into "$kernel_dir" "$tree/lab" "${names[@]}" || return 1
    pack "$tree" "$dir/initrd" && rm -rf "$tree"
    printf '%s\n' "$host_key" > "$dir/stamp"
}

build_guest_init() {
    command -v cargo > /dev/null || { say "building the guest's init needs cargo"; return 1; }
    say "building the guest's init"
    (cd "$repo" && CARGO_TARGET_DIR=$lab_dir/cargo RUSTFLAGS='-C target-feature=+crt-static' \
        cargo build -q --profile lab --target x86_64-unknown-linux-gnu -p gpuvm-lab-guest) >&2
}

# fat_image IMAGE FILE=NAME...: a disk that is one FAT file system, as UEFI reads it; without partitions, so that nobody needs to be root.
fat_image() {
    local image=$1 file bytes=0
    shift
    for file in "$@"; do bytes=$((bytes + $(stat -c %s "${file%=*}"))); done
    truncate -s "$((bytes / 1048576 + 2))M" "$image" && mformat -i "$image" :: || return 1
    for file in "$@"; do mcopy -i "$image" "${file%=*}" "::${file##*=}" || return 1; done
}

build_guest() {
    local dir=$1 tree=$1/tree
    mkdir -p "$tree/dev"
    build_guest_init || return 1
    install -m 755 "$lab_dir/cargo/x86_64-unknown-linux-gnu/lab/gpuvm-lab-guest" "$tree/init"
    modules_into "$kernel_dir" "$tree" "${guest_modules[@]}" || return 1
    pack "$tree" "$dir/initrd" && rm -rf "$tree"
    cp --reflink=auto "$kernel_dir/kernel" "$kernel_dir/bzImage" "$dir/"
    fat_image "$dir/uefi-device.img" "$repo/tests/lab/uefi/read-device.nsh=startup.nsh" || return 1
    # UEFI starts the bzImage, which is an EFI program too; it knows nothing of PVH.
    fat_image "$dir/uefi-linux.img" "$repo/tests/lab/uefi/start-linux.nsh=startup.nsh" \
        "$kernel_dir/bzImage=linux.efi" "$dir/initrd=initrd" || return 1
    printf '%s\n' "$guest_key" > "$dir/stamp"
}

stamped() { [ -f "$1/stamp" ] && [ "$(cat "$1/stamp")" = "$2" ]; }

# A kernel of the user's choice gets folders of its own, named after the file's place, size and date.
prepare_places() {
    kernel_dir=$lab_dir/kernel host_dir=$lab_dir/host guest_dir=$lab_dir/guest
    [ -n "$kernel_file" ] || return 0
    [ -e "$kernel_file" ] || die 64 "--kernel: no $kernel_file"
    kernel_file=$(realpath "$kernel_file")
    local key
    key=$(stat -c '%n %s %Y' "$kernel_file" | sha256sum | cut -c1-12)
    kernel_dir=$lab_dir/kernel-$key host_dir=$lab_dir/host-$key guest_dir=$lab_dir/guest-$key
}

# Sources are hashed, not dated: a fresh clone of the same tree has nothing to rebuild.
prepare_keys() {
    local tools=scripts/lib/lab-prepare.sh release
    release=$(cat "$kernel_dir/release" 2> /dev/null || true)
    host_key=$release-$(hash_of tests/lab/initramfs "$tools")-$(all_host_modules | cksum)
    guest_key=$release-$(hash_of tests/lab/guest tests/lab/uefi \
        crates/gpuvm-sys/src/mmio.rs Cargo.lock Cargo.toml "$tools")
}

prepared() {
    prepare_keys
    [ -z "$(packages_missing "${lab_needs[@]}")" ] && stamped "$host_dir" "$host_key" && stamped "$guest_dir" "$guest_key"
}

# prepare_kernel DIR: the newest kernel of the machine's sources, unless DIR has one.
prepare_kernel() {
    local dir=$1 name
    [ ! -f "$dir/bzImage" ] || return 0
    if ! name=$(newest_kernel "${kernel_metas[@]}"); then
        # The package lists may be absent.
        packages_as_root apt-get -qq update >&2 || true
        name=$(newest_kernel "${kernel_metas[@]}") ||
            { say "the package sources have none of: ${kernel_metas[*]}; give a kernel with --kernel"; return 1; }
    fi
    into "$dir" kernel_package "$name"
}

# prepare: brings target/lab up to date. One at a time: several runs may start together.
prepare() {
    prepare_places
    mkdir -p "$lab_dir"
    ! prepared || return 0
    exec 9> "$lab_dir/lock"
    flock 9
    # Left by a preparation that was interrupted: whoever holds the lock is alone.
    rm -rf "$lab_dir"/*.new.*
    packages_need "${lab_needs[@]}" || return 1
    if [ -z "$kernel_file" ]; then
        prepare_kernel "$kernel_dir" || return 1
    else
        [ -f "$kernel_dir/bzImage" ] || into "$kernel_dir" kernel_given "$kernel_file" || return 1
    fi
    prepare_keys
    stamped "$host_dir" "$host_key" || into "$host_dir" build_host || return 1
    stamped "$guest_dir" "$guest_key" || into "$guest_dir" build_guest || return 1
    exec 9>&-
}
