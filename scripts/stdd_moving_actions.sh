#!/usr/bin/env bash
# Trains STDD on one half of the classes of the made world, tests it on both halves, and prints a table.
# It compares plain names of classes with augmented texts, and the weights of the last epoch with averages over epochs.
# All rows but zero-shot have three seeds. A row in the results file is not run again.
#   bash scripts/stdd_moving_actions.sh
#   JOBS=2 seeds="0 1" only="augmented" bash scripts/stdd_moving_actions.sh
#   shots=0 average=2-8 results=results/longer.csv bash scripts/stdd_moving_actions.sh  # all clips
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
source "$(dirname "$0")/_rows.sh"
cd "$repository"
no_arguments "$@"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

DATA_PATH=${DATA_PATH:-data/moving_actions}
# Has an even grid of patches, 8 x 8, as STDD needs it; preprocess/train_small_clip.py --patch_size 14 makes it.
pretrained_clip_name=${pretrained_clip_name:-pretrained/moving_shapes_clip_p14.safetensors}
results=${results:-results/stdd_moving_actions.csv}
runs=${runs:-runs/stdd_moving_actions}
seeds=${seeds-0 1 2}
epochs=${epochs:-8}
average=${average:-3-8}  # epochs whose weights are averaged
how=${how:-swa}          # the kind of average, see modules/averaging.py
shots=${shots:-64}       # training clips of each class; 0: all 256
batch_size=${batch_size:-16}
lr=${lr:-1e-3}
max_frames=${max_frames:-8}
max_words=${max_words:-16}
templates=${templates:-a shape {\}}
num_thread_reader=${num_thread_reader:-1}
frame_cache=${frame_cache:-}
JOBS=${JOBS:-1}          # runs at the same time
only=${only:-.}          # a regular expression; rows whose names match are run

lists=dataloaders/class_lists/moving_actions
plain="--classifier text"
names="--classifier bag --text_features texts_name.safetensors"  # a file in $runs, like the next one
augmented="--classifier bag --text_features texts_xmix.safetensors"
rows=(
    "zero-shot, plain names|--method clip4clip $plain"
    "zero-shot, plain names in a bag|--method clip4clip $names"
    "zero-shot, augmented texts|--method clip4clip $augmented"
    "STDD, plain names|--method stdd $plain"
    "STDD, plain names in a bag|--method stdd $names"
    "STDD, augmented texts|--method stdd $augmented"
    "no temporal branch, plain names|--method stdd --temporal none $plain"
    "no temporal branch, augmented texts|--method stdd --temporal none $augmented"
)
averages=()
for row in "${rows[@]}"; do
    [[ $row == zero-shot* ]] || averages+=("${row/|/, averaged|}")
done

check_rows "${rows[@]}" "${averages[@]}"
whole_number epochs
if any_wanted "${averages[@]}"; then
    [[ $how =~ ^(swa|gwa|bwa|ewa)$ ]] || refuse "how=$how: it is swa, gwa, bwa or ewa"
    first=${average%%-*} last=${average##*-}
    if ! { [[ $average =~ ^[0-9]{1,5}(-[0-9]{1,5})?$ ]] && [ "$first" -ge 1 ] && [ "$first" -le "$last" ] &&
        [ "$last" -le "$epochs" ]; }; then
        refuse "average=$average: must be one of the $epochs epochs that are trained, or a range such as 1-$epochs"
    fi
fi
mkdir -p "$runs" "$(dirname "$results")"
"$PYTHON" preprocess/make_moving_actions.py --output_dir "$DATA_PATH"

# make_texts MODE FLAGS...: encodes the texts of a bag, unless they are there.
make_texts() {
    "$PYTHON" preprocess/text_features.py --output "$runs/texts_$1.safetensors" --mode "$@" \
        --pretrained_clip_name "$pretrained_clip_name" --datatype ucf101 --data_path "$DATA_PATH" \
        --labels "${lists}_labels.yaml"
}
make_texts name
make_texts xmix --clauses "${lists}_clauses.yaml"

# run_row NAME SEED FILE FOLDER FLAGS...
run_row() {
    local name=$1 seed=$2 file=$3 folder=$4 trained
    shift 4
    set -- "${@/#texts_/$runs/texts_}"
    case $name in
        zero-shot*) set -- --do_eval "$@" ;;
        *", averaged")
            trained=$(run_folder_of "${name%, averaged}" "$seed" "$runs")
            "$PYTHON" -m engine.average "$trained" --how "$how" --epochs "$average" \
                --output "$trained/averaged.safetensors" || return
            set -- --do_eval --init_model "$trained/averaged.safetensors" "$@"
            ;;
        *) set -- --do_train --save_every_epoch "$@" ;;
    esac
    # All that STDD trains came with CLIP, and so learns at lr * coef_lr.
    launch main_task_recognition.py --row_name "$name" --seed "$seed" --results_csv "$file" \
        --datatype ucf101 --data_path "$DATA_PATH" --features_path "$DATA_PATH/videos" --classes base \
        --pretrained_clip_name "$pretrained_clip_name" --templates "$templates" \
        --epochs "$epochs" --batch_size "$batch_size" --lr "$lr" --coef_lr 1 \
        --max_frames "$max_frames" --max_words "$max_words" --shots "$shots" --shots_seed "$seed" \
        --frame_sampling segment --feature_framerate 0 --num_thread_reader "$num_thread_reader" \
        --frame_cache "$frame_cache" --output_dir "$folder" "$@"
}

run_rows "$seeds" "$only" "$JOBS" "$runs"
rows=("${averages[@]}")  # after the trainings, whose epochs they average
run_rows "$seeds" "$only" "$JOBS" "$runs"
print_tables
[ ! -s "$failed" ] || exit 1
