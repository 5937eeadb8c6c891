#!/bin/sh
# Adds this machine's backports suite to APT's sources, by name.
#
#   backports.sh APT_DIR CODENAME
#
# The package source that the machine already uses for CODENAME is used again, with its key: whatever mirror that is, no
# host is written down here. Both of APT's formats are understood (deb822 `*.sources` and one-line `*.list`); the answer
# is written in the format that was found, to a file of its own. Does nothing where the suite is already there.
# Exit status: 0 the suite is listed, 3 no package source for CODENAME was found.
set -eu

apt_dir=$1
codename=$2
suite=$codename-backports
ours=$apt_dir/sources.list.d/pullfs-backports

# Prints what is listed: a line "deb822" or "oneline" and the part of the source that a new entry needs.
# The answer is empty unless a source of SUITES (a | b | c) is there.
deb822_source() {
    for file in "$apt_dir"/sources.list.d/*.sources; do
        [ -e "$file" ] || continue
        # Comments may stand between the fields of a paragraph, so they go first.
        grep -v '^#' "$file" | awk -v wanted="$1" '
            BEGIN { RS = ""; FS = "\n"; n = split(wanted, suites, "|") }
            {
                kept = ""; field = ""; is_deb = 0; listed = 0; enabled = 1
                for (i = 1; i <= NF; i++) {
                    if ($i ~ /^[^ \t:]+:/) {
                        field = tolower(substr($i, 1, index($i, ":") - 1))
                        value = substr($i, index($i, ":") + 1)
                    } else {
                        value = $i
                    }
                    words = split(value, word, /[ \t]+/)
                    for (w = 1; w <= words; w++) {
                        if (field == "types" && word[w] == "deb") is_deb = 1
                        if (field == "enabled" && tolower(word[w]) == "no") enabled = 0
                        for (s = 1; s <= n; s++)
                            if (field == "suites" && word[w] == suites[s]) listed = 1
                    }
                    # A key may be written out in full, on lines of its own.
                    if (field == "uris" || field == "signed-by" || field == "trusted") kept = kept $i "\n"
                }
                if (is_deb && listed && enabled) { printf "%s", kept; exit }
            }'
    done | awk 'tolower($0) ~ /^uris:/ && seen++ { exit } { print }'
}

oneline_source() {
    for file in "$apt_dir"/sources.list "$apt_dir"/sources.list.d/*.list; do
        [ -e "$file" ] || continue
        awk -v wanted="$1" '
            BEGIN { n = split(wanted, suites, "|") }
            $1 == "deb" {
                line = $0
                sub(/^[ \t]*deb[ \t]+/, "", line)
                options = ""
                if (match(line, /^\[[^]]*\][ \t]*/)) {
                    options = substr(line, 1, RLENGTH)
                    sub(/[ \t]*$/, " ", options)
                    line = substr(line, RLENGTH + 1)
                }
                split(line, part, /[ \t]+/)
                if (part[1] ~ /^cdrom:/) next
                for (s = 1; s <= n; s++)
                    if (part[2] == suites[s]) { print options part[1]; exit }
            }' "$file"
    done | head -n 1
}

if [ -n "$(deb822_source "$suite")" ] || [ -n "$(oneline_source "$suite")" ]; then
    exit 0
fi

source=$(deb822_source "$codename|stable")
if [ -n "$source" ]; then
    printf 'Types: deb\n%s\nSuites: %s\nComponents: main\n' "$source" "$suite" >"$ours.sources"
    echo "added the suite $suite in $ours.sources"
    exit 0
fi
source=$(oneline_source "$codename|stable")
if [ -n "$source" ]; then
    printf 'deb %s %s main\n' "$source" "$suite" >"$ours.list"
    echo "added the suite $suite in $ours.list"
    exit 0
fi
exit 3
