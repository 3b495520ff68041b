# shellcheck shell=bash
# Sourced by the scripts of tables: runs the rows of a table with several seeds and notes which of them failed.
# The script defines `results`, the file of results, an array `rows` of "name|flags", and
#   run_row NAME SEED FILE FOLDER FLAGS...  trains and evaluates a row

failed=$(mktemp)
trap 'rm -f "$failed"' EXIT

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
run_rows() {
    local seeds=$1 only=$2 jobs=$3 runs=$4 seed row name file folder words
    for seed in $seeds; do
        # The script defines `rows`; there are none if all are finished.
        # shellcheck disable=SC2154
        for row in ${rows[@]+"${rows[@]}"}; do
            name=${row%%|*}
            [[ $name =~ $only ]] || continue
            # Zero-shot is the same for every seed.
            [[ $name == zero-shot* && $seed != "${seeds%% *}" ]] && continue
            file=$(results_of "$name")
            if [ -f "$file" ] && "$PYTHON" -m tools.report "$file" --has "$name" "$seed"; then
                continue
            fi
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
    done
    wait
}
