# shellcheck shell=bash
# Sourced by the launch scripts: each function stops a script that was given what it cannot use, with one sentence.
# The status is 2. Call them before anything is written. Those that ask what was set come before the script's defaults.

# refuse SENTENCE
refuse() {
    echo "error: $*" >&2
    exit 2
}

# no_mode: of a script that trains and does not read `mode`.
no_mode() {
    [ "${mode:-train}" = train ] || refuse "mode=$mode: this script always trains; leave it out, and evaluate a" \
        "checkpoint with a main_task program and its --do_eval"
}

# no_arguments ARGUMENTS...: of a script that variables alone steer, none of which is `mode`.
no_arguments() {
    [ $# = 0 ] || refuse "$1: this script takes no arguments; set variables in front of it, as in 'epochs=8 bash $0'"
    no_mode
}

# in_vain REASON NAME...: refuses variables that were set where REASON makes them useless.
in_vain() {
    local reason=$1 name
    for name in "${@:2}"; do
        [ -z "${!name:-}" ] || refuse "$name=${!name}: $reason; leave it out"
    done
}

# existing NAME...: refuses variables that name a file that is not there.
existing() {
    local name
    for name in "$@"; do
        [[ -z ${!name:-} || -f ${!name} ]] || refuse "$name=${!name}: there is no such file; correct it, or leave it out"
    done
}

# whole_number NAME: refuses a variable that was set to anything but a whole number of at least 1.
whole_number() {
    [[ -z ${!1:-} || ${!1} =~ ^[1-9][0-9]{0,8}$ ]] || refuse "$1=${!1}: must be a whole number, at least 1"
}

# whole_numbers NAME: refuses a variable that is no list of whole numbers; writes it with one space between them.
whole_numbers() {
    local number numbers before=" " fix="name different whole numbers with spaces between them, as in $1=\"0 1 2\""
    read -ra numbers <<<"${!1//$'\n'/ }"
    [ ${#numbers[@]} != 0 ] || refuse "$1=${!1}: has no number; $fix"
    for number in "${numbers[@]}"; do
        [[ $number =~ ^(0|[1-9][0-9]*)$ ]] || refuse "$1=${!1}: $number is no whole number; $fix"
        # Two runs of one seed would write into one folder.
        [[ $before != *" $number "* ]] || refuse "$1=${!1}: has $number twice; $fix"
        before+="$number "
    done
    printf -v "$1" %s "${numbers[*]}"
}
