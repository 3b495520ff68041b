# shellcheck shell=bash
# Sourced by the scripts of tables: runs the rows of a table with several seeds and notes which of them failed.
# The script defines `results`, the file of results, an array `rows` of "name|flags", and
#   run_row NAME SEED FILE FOLDER FLAGS...  trains and evaluates a row

failed=$(mktemp) plans=$(mktemp -d)
trap 'rm -rf "$failed" "$plans"' EXIT

# any_wanted ROWS...: whether the name of a row matches `only`.
any_wanted() {
    local row
    for row in "$@"; do
        [[ ${row%%|*} =~ ${only:?} ]] && return
    done
    return 1
}

# check_rows ROWS...: refuses values of JOBS, seeds and only that are no numbers, or match the name of none of the rows.
# The script calls it when these variables have their defaults, and before it writes anything.
check_rows() {
    local status=0 names
    whole_number JOBS
    [ -z "${seeds+set}" ] || whole_numbers seeds
    # Bash has no other way to ask whether an expression is one.
    # shellcheck disable=SC2319
    [[ "" =~ ${only:?} ]] 2>/dev/null || status=$?
    [ "$status" != 2 ] ||
        refuse "only=$only: is no regular expression; put a backslash before a sign that stands for itself"
    names=$(printf '%s; ' "${@%%|*}")
    any_wanted "$@" || refuse "only=$only: matches the name of none of the rows, which are: ${names%; }"
}

# results_of NAME: prints the results file of a row. Rows of base-to-novel have more columns, and so a file of their own.
results_of() {
    local file=${results:?}
    case $1 in
        *"base to novel") file=${file%.csv}_base_to_novel.csv ;;
    esac
    echo "$file"
}

# print_tables: prints the means over seeds of each results file that is there.
print_tables() {
    local file
    for file in "$(results_of row)" "$(results_of "base to novel")"; do
        if [ -f "$file" ]; then
            "$PYTHON" -m tools.report "$file" --mean
        fi
    done
}

# run_folder_of NAME SEED RUNS: prints the folder of a row's run.
run_folder_of() {
    echo "$3/$(tr -cs 'A-Za-z0-9_' '_' <<<"$1")$2"
}

# run_rows SEEDS ONLY JOBS RUNS: runs each row with each of SEEDS, if its name matches ONLY and its results file lacks it.
# JOBS run at the same time, with their folders and logs in RUNS. Afterwards the file `failed` has a line for each failure.
# Stops before the first run if a row that is not run again was made with other settings.
run_rows() {
    local seeds=$1 only=$2 jobs=$3 runs=$4 seed row name file folder words missing=()
    for seed in $seeds; do
        # The script defines `rows`; there are none if all are finished.
        # shellcheck disable=SC2154
        for row in ${rows[@]+"${rows[@]}"}; do
            name=${row%%|*}
            [[ $name =~ $only ]] || continue
            # Zero-shot is the same for every seed.
            [[ $name == zero-shot* && $seed != "${seeds%% *}" ]] && continue
            file=$(results_of "$name")
            if has_row "$file" "$name" "$seed"; then
                plan_row "$row" "$seed" "$file" "$runs"
            else
                [ $? = 1 ] || exit 2
                missing+=("$seed|$row")
            fi
        done
    done
    compare_plans || exit 2
    for row in ${missing[@]+"${missing[@]}"}; do
        seed=${row%%|*} row=${row#*|}
        name=${row%%|*}
        file=$(results_of "$name")
        while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do
            wait -n || true  # `failed` has the runs that failed
        done
        read -ra words <<<"${row#*|}"
        folder=$(run_folder_of "$name" "$seed" "$runs")
        {
            echo "$(date +%T)  $name, seed $seed"
            run_row "$name" "$seed" "$file" "$folder" "${words[@]}" >"$folder.log" 2>&1 ||
                echo "error: $name, seed $seed failed; its output is in $folder.log" | tee -a "$failed" >&2
        } &
    done
    wait
}

# has_row FILE NAME SEED: 0 if the results file has the row, 1 if it lacks it or is not there, 2 if it is damaged.
has_row() {
    [ -f "$1" ] && "$PYTHON" -m tools.report "$1" --has "$2" "$3"
}

# plan_row ROW SEED FILE RUNS: writes down what run_row would run, into a file of the folder `plans`.
plan_row() {
    local name=${1%%|*} words plan
    read -ra words <<<"${1#*|}"
    plan=$(mktemp "$plans/XXXXXXXX")
    printf '%s\0' "$3" >"$plan"
    # `launch` writes into `plan`, and nothing else is run.
    PYTHON=true run_row "$name" "$2" "$3" "$(run_folder_of "$name" "$2" "$4")" "${words[@]}"
}

# compare_plans: compares the rows that are planned with those in the results files, and forgets the plans.
compare_plans() {
    local files=("$plans"/*)
    [ -f "${files[0]}" ] || return 0
    "$PYTHON" -m tools.finished "${files[@]}" && rm -f "${files[@]}"
}
