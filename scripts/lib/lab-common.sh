# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # one program in several files: variables come from the others
# Sourced by scripts/lab: where things lie, and messages. Expects $repo.

lab_dir=$repo/target/lab
hosts_dir=$repo/tests/lab/hosts

say() { printf 'lab: %s\n' "$*" >&2; }
die() {
    local code=$1
    shift
    say "$@"
    exit "$code"
}

# hash_of PATH...: one key for the names and contents of all files, in the repo; folders are walked.
hash_of() {
    (cd "$repo" && find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
}
