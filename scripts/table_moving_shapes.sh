#!/usr/bin/env bash
# Trains every method of the comparison on the embedded world by one protocol, and prints a table.
# Each row first gets the best of three learning rates, by held-out training videos on seed 0; then it has three seeds.
# Rows in the results files are not run again, so an interrupted table goes on.
#   JOBS=2 bash scripts/table_moving_shapes.sh
#   frame_cache=data/moving_shapes/frames bash scripts/table_moving_shapes.sh  # decodes each clip once
#   seeds=0 only="^(LoRA|TempMe)$" bash scripts/table_moving_shapes.sh
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
source "$(dirname "$0")/_moving_shapes.sh"
cd "$repository"
no_arguments "$@"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

DATA_PATH=${DATA_PATH:-data/moving_shapes}
frame_captions=${frame_captions:-}  # for DiscoVLA; empty: those of the made world
pretrained_clip_name=${pretrained_clip_name:-pretrained/moving_shapes_clip.safetensors}
results=${results:-results/table_moving_shapes.csv}
runs=${runs:-runs/table_moving_shapes}
seeds=${seeds-0 1 2}
epochs=${epochs:-2}
search_epochs=${search_epochs:-1}  # of a run that compares learning rates: half a row's
batch_size=${batch_size:-32}
max_frames=${max_frames:-8}
max_words=${max_words:-24}  # no caption has more; the small CLIP reads 32 tokens, learned ones included
holdout_videos=${holdout_videos:-240}
num_thread_reader=${num_thread_reader:-1}
frame_cache=${frame_cache:-}
benchmark=${benchmark:-results/benchmark_moving_shapes.json results/benchmark_moving_shapes_joint.json}  # of benchmarks.methods
JOBS=${JOBS:-1}        # runs at the same time
only=${only:-.}        # a regular expression; rows whose names match are run

source "$(dirname "$0")/_table.sh"
use_rates_of_the_small_clip
go_beyond_the_paper 22-8-6 18-10-6  # leave 0.40 and 0.46 of the patches in the mean over blocks, as in table_msrvtt.sh

check_rows zero-shot "${comparison[@]}"
mkdir -p "$runs" "$(dirname "$results")"
"$PYTHON" preprocess/make_moving_shapes.py --output_dir "$DATA_PATH"
if [ -z "$frame_captions" ]; then  # its file describes all frames of a clip
    frame_captions=$runs/frame_captions_$max_frames.json
    "$PYTHON" preprocess/fewer_frame_captions.py --frame_captions "$DATA_PATH/frame_captions.json" \
        --max_frames "$max_frames" --output "$frame_captions"
fi

# train_row NAME SEED FILE FOLDER FLAGS...
train_row() {
    case " $* " in
        *" --method discovla "*) set -- "$@" --frame_captions "$frame_captions" --frame_sampling uniform ;;
        *" --method efficient_prompt "*) set -- "$@" --prefix 4 --postfix 4 ;;
    esac
    run_on_moving_shapes "${@:1:4}" --pretrained_clip_name "$pretrained_clip_name" --max_words "$max_words" \
        --frame_cache "$frame_cache" "${@:5}"
}

search_rates
run_comparison
print_comparison --no_cited
[ ! -s "$failed" ] || exit 1
