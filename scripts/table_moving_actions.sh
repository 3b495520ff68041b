#!/usr/bin/env bash
# Trains every method of the comparison for action recognition on the made world in UCF101's layout, and prints a table.
# Each row first gets the best of three learning rates, by held-out training videos on seed 0; then it has three seeds.
# Rows in the results files are not run again, so an interrupted table goes on.
#   JOBS=2 bash scripts/table_moving_actions.sh
#   frame_cache=data/moving_actions/frames bash scripts/table_moving_actions.sh  # decodes each clip once
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
cd "$repository"
no_arguments "$@"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

DATA_PATH=${DATA_PATH:-data/moving_actions}
pretrained_clip_name=${pretrained_clip_name:-pretrained/moving_shapes_clip.safetensors}
results=${results:-results/table_moving_actions.csv}
runs=${runs:-runs/table_moving_actions}
seeds=${seeds-0 1 2}
epochs=${epochs:-4}
search_epochs=${search_epochs:-2}  # of a run that compares learning rates: half a row's
batch_size=${batch_size:-16}
max_frames=${max_frames:-8}
max_words=${max_words:-16}
templates=${templates:-a shape {\}}
holdout_videos=${holdout_videos:-300}
num_thread_reader=${num_thread_reader:-1}
frame_cache=${frame_cache:-}
JOBS=${JOBS:-1}        # runs at the same time
only=${only:-.}        # a regular expression; rows whose names match are run

frame_captions=""  # recognition has no captions of frames, so DiscoVLA is left out
source "$(dirname "$0")/_table.sh"
use_rates_of_the_small_clip
go_beyond_the_paper 22-8-6 18-10-6  # leave 0.40 and 0.46 of the patches in the mean over blocks, as in table_msrvtt.sh
# STDD needs an even grid of patches, which this CLIP has not: scripts/stdd_moving_actions.sh has its table.
comparison+=("TC-CLIP|--method tc_clip|head")

check_rows zero-shot "${comparison[@]}"
mkdir -p "$runs" "$(dirname "$results")"
"$PYTHON" preprocess/make_moving_actions.py --output_dir "$DATA_PATH"

# train_row NAME SEED FILE FOLDER FLAGS...
train_row() {
    local name=$1 seed=$2 file=$3 folder=$4
    shift 4
    case " $* " in *" --method efficient_prompt "*) set -- "$@" --prefix 4 --postfix 4 ;; esac
    launch main_task_recognition.py --row_name "$name" --seed "$seed" --results_csv "$file" \
        --datatype ucf101 --data_path "$DATA_PATH" --features_path "$DATA_PATH/videos" \
        --pretrained_clip_name "$pretrained_clip_name" --templates "$templates" \
        --epochs "$epochs" --batch_size "$batch_size" --max_frames "$max_frames" --max_words "$max_words" \
        --frame_sampling segment --feature_framerate 0 --num_thread_reader "$num_thread_reader" \
        --frame_cache "$frame_cache" --output_dir "$folder" "$@"
}

search_rates
run_comparison
print_comparison --no_cited
[ ! -s "$failed" ] || exit 1
