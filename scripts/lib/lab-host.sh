# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # one program in several files: variables come from the others
# Sourced by scripts/lab: reads host files (tests/lab/README.md, "Hosts are data") into $host_keys (order) and $host_values.

declare -a host_keys=()
declare -A host_values=()

# host_read NAME: reads the host file; a key that was seen before is replaced in its place, so that includes can be overridden.
host_read() {
    local file=$hosts_dir/$1 line key value number=0
    [[ $1 =~ ^[a-z0-9][a-z0-9-]*$ && -f $file ]] || die 64 "no lab host '$1'; there are: $(host_names)"
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
        [[ $line =~ ^([a-z]+(\.[a-z0-9-]+)?):[[:space:]]*(.*)$ ]] || die 64 "$file:$number: not 'key: value'"
        key=${BASH_REMATCH[1]} value=${BASH_REMATCH[3]}
        case $key in
            include) host_read "$value" ;;
            description | qemu.* | kernel.* | modules.* | disk.* | setup.*)
                [ -v "host_values[$key]" ] || host_keys+=("$key")
                host_values[$key]=$value
                ;;
            *) die 64 "$file:$number: unknown key '$key'" ;;
        esac
    done < "$file"
}

# host_lines KIND: the values of all KIND.* keys in order, one a line, empty ones left out.
host_lines() {
    local key
    for key in "${host_keys[@]}"; do
        [[ $key == "$1".* && -n ${host_values[$key]} ]] && printf '%s\n' "${host_values[$key]}"
    done
    return 0
}

host_names() { (cd "$hosts_dir" && printf '%s ' *); }

host_list() {
    local file
    for file in "$hosts_dir"/*; do
        printf '%-16s %s\n' "${file##*/}" "$(sed -n 's/^description: *//p' "$file" | head -n 1)"
    done
}

# host_disks DIR: makes the images that the host's disk lines ask for: "SIZE" blank, "SIZE ext4" formatted.
host_disks() {
    local key size format
    for key in "${host_keys[@]}"; do
        [[ $key == disk.* ]] || continue
        read -r size format <<< "${host_values[$key]}"
        [ -n "$size" ] || continue
        truncate -s "$size" "$1/${key#disk.}.img"
        case $format in
            '') ;;
            ext4) PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -L "lab-${key#disk.}" "$1/${key#disk.}.img" ;;
            *) die 64 "$key: unknown format '$format' (ext4 or nothing)" ;;
        esac
    done
}
