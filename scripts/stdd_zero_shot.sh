#!/usr/bin/env bash
# Zero-shot action recognition of one checkpoint by all protocols of STDD, as one table with mean and deviation.
# A data set that is not there is named and left out. A row in the results file is not run again. The ten draws of half of
# the classes take five times as long as all videos of their data set; draws=0 runs one of them.
#   bash scripts/stdd_zero_shot.sh runs/k400_stdd/last.safetensors
#   bash scripts/stdd_zero_shot.sh averaged.safetensors --ensemble_clip 0.2
#   only="UCF101|HMDB51" classifier=bag text_features=data/texts/{}.safetensors bash scripts/stdd_zero_shot.sh FILE
# In text_features, {} stands for ucf101, hmdb51, kinetics400, kinetics600_1 and so on; in k600_list and k600_classes for 1
# to 3. The column `list` of the results names the list of Kinetics-600: two families of lists have that name.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
source "$(dirname "$0")/_rows.sh"

in_vain "a checkpoint is evaluated, and draws has the numbers of draws of classes" seeds
checkpoint=${checkpoint:-runs/k400_stdd/last.safetensors}
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    checkpoint=$1
    shift
fi
flags=("$@")
ucf101=${ucf101:-data/ucf101}
hmdb51=${hmdb51:-data/hmdb51}
k400=${k400:-data/k400}
k600=${k600:-data/k600}
k600_list=${k600_list:-$k600/zero_shot/k600_split{\}.txt}
k600_classes=${k600_classes:-$k600/zero_shot/ZS_split{\}_K600.csv}
classifier=${classifier:-text}
text_features=${text_features:-}
test_views=${test_views:-3x1}
draws=${draws-0 1 2 3 4 5 6 7 8 9}
results=${results:-results/stdd_zero_shot.csv}
runs=${runs:-runs/stdd_zero_shot}
JOBS=${JOBS:-1}  # runs at the same time
only=${only:-.}  # a regular expression; rows whose names match are run

[ -f "$checkpoint" ] || refuse "there is no checkpoint $checkpoint: name one as the first argument"
[ "$classifier" = bag ] || in_vain "is for classifier=bag alone, and classifier is $classifier" text_features
if [ "$classifier" = bag ] && [ -z "$text_features" ]; then
    refuse "classifier=bag: needs text_features, the files that preprocess/text_features.py writes"
fi
whole_numbers draws
names=()  # of all rows
rows=()   # of those whose data set is there
left_out=()

# features_of DATA_SET NUMBER: the file with the prompts of its classes; each list of Kinetics-600 has one.
features_of() {
    local data=$1
    [ "$data" != kinetics600 ] || data=kinetics600_$2
    echo "${text_features//\{\}/$data}"
}

# lacks DATA_SET: the first of its files that is not there.
lacks() {
    local file number files=("$(folder_of "$1")")
    for number in 1 2 3; do
        [ "$1" != kinetics600 ] || files+=("${k600_list//\{\}/$number}" "${k600_classes//\{\}/$number}")
        [ "$classifier" != bag ] || files+=("$(features_of "$1" "$number")")
    done
    for file in "${files[@]}"; do
        if [ ! -e "$file" ]; then
            echo "$file"
            return
        fi
    done
}

folder_of() {
    case $1 in
        ucf101) echo "$ucf101" ;;
        hmdb51) echo "$hmdb51" ;;
        kinetics400) echo "$k400" ;;
        kinetics600) echo "$k600" ;;
    esac
}

# add NAME DATA_SET FLAGS...: adds a row to `rows` if the data set is there.
add() {
    local name=$1 lacking
    shift
    names+=("$name")
    lacking=$(lacks "$1")
    if [ -z "$lacking" ]; then
        rows+=("$name|$*")
    else
        left_out+=("$name (no $lacking)")
    fi
}

# run_row NAME NUMBER FILE RUN DATA_SET FLAGS...: NUMBER is that of the split, list or draw, and takes the place of {}.
run_row() {
    local name=$1 number=$2 file=$3 run=$4 data=$5 own=() folder
    shift 5
    set -- "${@//\{\}/$number}"
    folder=$(folder_of "$data")
    case $data in
        kinetics600) own=(--val_csv "${k600_list//\{\}/$number}" --labels_csv "${k600_classes//\{\}/$number}") ;;
        *) own=(--data_path "$folder") ;;
    esac
    [ "$classifier" != bag ] || own+=(--text_features "$(features_of "$data" "$number")")
    launch main_task_recognition.py --do_eval --init_model "$checkpoint" --row_name "$name" --seed "$number" \
        --results_csv "$file" --output_dir "$run" --datatype "$data" --features_path "$folder/videos" "${own[@]}" \
        --classifier "$classifier" --test_views "$test_views" "$@" "${flags[@]}"
}

# The rows of a protocol run with each of its numbers, which is the seed of their results.
add "UCF101, 3 splits" ucf101 --split {}
add "HMDB51, 3 splits" hmdb51 --split {}
add "Kinetics-600, 3 lists of 160 classes" kinetics600
of_three=("${rows[@]}") rows=()
add "UCF101, all videos" ucf101 --test_videos all
add "HMDB51, all videos of split 1" hmdb51 --test_videos all
add "Kinetics-400, validation" kinetics400
add "UCF101, base to novel" ucf101 --classes base
add "HMDB51, base to novel" hmdb51 --classes base
of_one=("${rows[@]}") rows=()
add "UCF101, draws of 50 classes" ucf101 --test_videos all --classes half:{}
add "HMDB51, draws of 25 classes" hmdb51 --test_videos all --classes half:{}
of_draws=("${rows[@]}")
check_rows "${names[@]}"

tell_left_out() {
    local name
    for name in "${left_out[@]}"; do
        echo "left out: $name"
    done
}
if [ ${#left_out[@]} = ${#names[@]} ]; then
    tell_left_out
    echo "error: none of the data sets is there; ucf101=FOLDER hmdb51=FOLDER k400=FOLDER k600=FOLDER say where they are" >&2
    exit 1
fi
mkdir -p "$runs" "$(dirname "$results")"
rows=("${of_three[@]}")
run_rows "1 2 3" "$only" "$JOBS" "$runs"
rows=("${of_one[@]}")
run_rows 1 "$only" "$JOBS" "$runs"
rows=("${of_draws[@]}")
run_rows "$draws" "$only" "$JOBS" "$runs"

print_tables
tell_left_out
[ ! -s "$failed" ] || exit 1
