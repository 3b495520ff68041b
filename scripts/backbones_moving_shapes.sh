#!/usr/bin/env bash
# Trains STOP on small backbones of three families on the embedded world, evaluates each untrained, and prints a table.
# All rows have the data, steps, batch and frames of ablation_moving_shapes.sh. A row in the results file is not run again.
#   bash scripts/backbones_moving_shapes.sh
#   seeds="0 1 2" only="SigLIP" bash scripts/backbones_moving_shapes.sh
#   frame_cache=data/moving_shapes/frames bash scripts/backbones_moving_shapes.sh  # decodes each clip once a family
# Backbones that are not there are trained first, on stills alone, for about half an hour each.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
source "$(dirname "$0")/_moving_shapes.sh"
source "$(dirname "$0")/_rows.sh"
cd "$repository"
no_arguments "$@"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

DATA_PATH=${DATA_PATH:-data/moving_shapes}
backbones=${backbones:-pretrained}  # the folder of moving_shapes_clip.safetensors and the others
results=${results:-results/backbones_moving_shapes.csv}
runs=${runs:-runs/backbones_moving_shapes}
seeds=${seeds-0}
epochs=${epochs:-2}
batch_size=${batch_size:-32}
max_frames=${max_frames:-8}
num_thread_reader=${num_thread_reader:-1}
frame_cache=${frame_cache:-}
JOBS=${JOBS:-1}        # runs at the same time
only=${only:-.}        # a regular expression; rows whose names match are run

stop="--do_train --method stop --lr 4e-3 --intra_width 32 --inter_width 32"
rows=()
for family in CLIP "Perception Encoder" SigLIP; do
    case $family in
        CLIP) file=moving_shapes_clip ;;
        SigLIP) file=moving_shapes_siglip ;;
        *) file=moving_shapes_pe ;;
    esac
    clip="--pretrained_clip_name $backbones/$file.safetensors"
    rows+=("zero-shot, $family|--do_eval --method clip4clip $clip" "STOP, $family|$stop $clip")
    [ "$family" != SigLIP ] || rows+=("STOP, SigLIP, its own loss|$stop $clip --loss auto")
done

check_rows "${rows[@]}"
mkdir -p "$runs" "$(dirname "$results")"
"$PYTHON" preprocess/make_moving_shapes.py --output_dir "$DATA_PATH"

# run_row NAME SEED FILE FOLDER FLAGS...
run_row() {
    run_on_moving_shapes "${@:1:4}" --frame_cache "$frame_cache" "${@:5}"
}

for family in pe siglip; do
    if [ ! -f "$backbones/moving_shapes_$family.safetensors" ]; then
        "$PYTHON" preprocess/train_small_clip.py --family "$family" \
            --output "$backbones/moving_shapes_$family.safetensors"
    fi
done
run_rows "$seeds" "$only" "$JOBS" "$runs"
"$PYTHON" -m tools.report "$results" --mean
[ ! -s "$failed" ] || exit 1
