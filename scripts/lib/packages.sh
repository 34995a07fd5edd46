# shellcheck shell=bash
# Sourced by scripts/lab, scripts/try and scripts/test: "have these, or say exactly what is missing".

# packages_missing FILE-OR-COMMAND=PACKAGE...: prints the packages whose file or command isn't there.
# It looks for what is used, not for the package, so that other distributions and self-built tools count.
packages_missing() {
    local need probe package missing=()
    for need in "$@"; do
        probe=${need%%=*} package=${need#*=}
        case $probe in
            /*) [ -e "$probe" ] ;;
            *) PATH=$PATH:/usr/sbin:/sbin command -v "$probe" > /dev/null ;;
        esac || case " ${missing[*]-} " in *" $package "*) ;; *) missing+=("$package") ;; esac
    done
    [ ${#missing[@]} -eq 0 ] || printf '%s\n' "${missing[@]}"
}

# packages_as_root CMD...: runs CMD as root, or fails without asking for a password when nobody could type one.
packages_as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

packages_may_install() {
    command -v apt-get > /dev/null || return 1
    [ "$(id -u)" -eq 0 ] && return 0
    command -v sudo > /dev/null || return 1
    [ -t 0 ] || sudo -n true 2> /dev/null
}

# packages_need FILE-OR-COMMAND=PACKAGE...: installs what is missing where it may; else names it on stderr and fails.
packages_need() {
    local missing
    mapfile -t missing < <(packages_missing "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! packages_may_install; then
        printf 'missing: %s\n' "${missing[*]}" >&2
        printf 'These are Debian package names. As root: apt-get update && apt-get install %s\n' "${missing[*]}" >&2
        return 1
    fi
    printf 'installing %s\n' "${missing[*]}" >&2
    packages_apt_install "${missing[@]}" || {
        printf 'could not install: %s\n' "${missing[*]}" >&2
        return 1
    }
}

# The package lists may be absent (a fresh image) or stale: refresh them once if the first try fails.
packages_apt_install() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
    packages_as_root "${apt[@]}" install -y --no-install-recommends "$@" > /dev/null 2>&1 && return 0
    packages_as_root "${apt[@]}" update >&2 || return 1
    packages_as_root "${apt[@]}" install -y --no-install-recommends "$@" > /dev/null
}

# packages_need_cargo: finds cargo, where rustup puts it too, and sees that it is new enough for the workspace. Installs nothing.
packages_need_cargo() {
    local oldest present
    command -v cargo > /dev/null || [ ! -x "${CARGO_HOME:-${HOME:-}/.cargo}/bin/cargo" ] || PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    if ! command -v cargo > /dev/null; then
        cat >&2 << 'TEXT'
missing: cargo (Rust). Get rustup with the line that https://rustup.rs gives:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
or, where the distribution has it (Debian 13, Ubuntu 24.04), as root: apt-get install rustup
Then run this again: rustup gets the toolchain that rust-toolchain.toml names by itself.
TEXT
        return 1
    fi
    oldest=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    present=$(cargo --version | cut -d ' ' -f 2) || present=
    [ -n "$present" ] || {
        printf 'cargo does not run. With rustup: rustup toolchain install %s\n' "$(sed -n 's/^channel = "\(.*\)"$/\1/p' rust-toolchain.toml)" >&2
        return 1
    }
    [ "$(printf '%s\n' "$oldest" "$present" | sort -V | head -n 1)" = "$oldest" ] || {
        printf 'cargo %s is too old: gpuvm needs %s. rustup (https://rustup.rs) gets it.\n' "$present" "$oldest" >&2
        return 1
    }
}
