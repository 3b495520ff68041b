#!/usr/bin/env bash
# Trains STOP and its baselines for action recognition on the made world in UCF101's layout, and prints a table.
# All rows but zero-shot have three seeds. A row in the results file is not run again.
#   bash scripts/recognition_moving_actions.sh
#   JOBS=2 seeds="0 1" only="^STOP|VPT" bash scripts/recognition_moving_actions.sh
#   epochs=16 results=results/longer.csv bash scripts/recognition_moving_actions.sh
#   frame_cache=data/moving_actions/frames bash scripts/recognition_moving_actions.sh  # decodes each clip once
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
source "$(dirname "$0")/_rows.sh"
cd "$repository"
no_arguments "$@"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

DATA_PATH=${DATA_PATH:-data/moving_actions}
pretrained_clip_name=${pretrained_clip_name:-pretrained/moving_shapes_clip.safetensors}
results=${results:-results/recognition_moving_actions.csv}
runs=${runs:-runs/recognition_moving_actions}
seeds=${seeds-0 1 2}
epochs=${epochs:-4}
whole_number epochs  # the rows below count with it
batch_size=${batch_size:-16}
max_frames=${max_frames:-8}
max_words=${max_words:-16}
templates=${templates:-a shape {\}}
num_thread_reader=${num_thread_reader:-1}
frame_cache=${frame_cache:-}
JOBS=${JOBS:-1}        # runs at the same time
only=${only:-.}        # a regular expression; rows whose names match are run

stop="--method stop --lr 4e-3 --intra_width 32 --inter_width 32"
# Epochs that give a quarter of the steps on few videos that `epochs` give on all, 256 a class.
few() {
    echo $((epochs * 256 / $1 / 4))
}
rows=(
    "zero-shot|--do_eval --method clip4clip"
    "CLIP4Clip meanP, all fine-tuned|--do_train --method clip4clip --lr 1e-3 --coef_lr 1"
    "VPT-deep, static prompts|--do_train --method vpt --lr 1e-2 --prompt_length 32 --text_prompt_length 4"
    "STOP|--do_train $stop"
    "STOP, twice the epochs|--do_train $stop --epochs $((2 * epochs))"
    "STOP, naive flips|--do_train $stop --flip plain_despite_map"
    "STOP, mapped flips|--do_train $stop --flip mapped"
    "STOP, linear head|--do_train $stop --classifier linear"
    "STOP, 2 shots|--do_train $stop --shots 2 --epochs $(few 2)"
    "STOP, 4 shots|--do_train $stop --shots 4 --epochs $(few 4)"
    "STOP, 8 shots|--do_train $stop --shots 8 --epochs $(few 8)"
    "STOP, 16 shots|--do_train $stop --shots 16 --epochs $(few 16)"
    # These have more columns, and so a file of their own.
    "zero-shot, base to novel|--do_eval --method clip4clip --classes base"
    "STOP, base to novel|--do_train $stop --classes base --shots 16 --epochs $(few 16)"
)

check_rows "${rows[@]}"
mkdir -p "$runs" "$(dirname "$results")"
"$PYTHON" preprocess/make_moving_actions.py --output_dir "$DATA_PATH"

# run_row NAME SEED FILE FOLDER FLAGS...
run_row() {
    local name=$1 seed=$2 file=$3 folder=$4
    shift 4
    launch main_task_recognition.py --row_name "$name" --seed "$seed" --results_csv "$file" \
        --datatype ucf101 --data_path "$DATA_PATH" --features_path "$DATA_PATH/videos" \
        --pretrained_clip_name "$pretrained_clip_name" --templates "$templates" \
        --epochs "$epochs" --batch_size "$batch_size" --max_frames "$max_frames" --max_words "$max_words" \
        --frame_sampling segment --feature_framerate 0 --num_thread_reader "$num_thread_reader" \
        --frame_cache "$frame_cache" --shots_seed "$seed" --output_dir "$folder" "$@"
}

run_rows "$seeds" "$only" "$JOBS" "$runs"
print_tables
[ ! -s "$failed" ] || exit 1
