#!/usr/bin/env bash
# Zero-shot text-video retrieval of every backbone whose weights are on this machine, on one data set, as one table.
# The protocol is "CLIP on video": a video is the mean of the unit embeddings of its frames, and nothing is trained.
# Rows in the results file are not run again, so an interrupted table goes on. Weights that are left out are named.
#   bash scripts/zero_shot_table.sh
#   DATA_PATH=data/moving_shapes max_frames=8 bash scripts/zero_shot_table.sh
#   backbones="ViT-B/32 open_clip:PE-Core-B-16/meta" max_words=77 bash scripts/zero_shot_table.sh
# DATA_PATH holds the files of the data set, see docs/datasets.md; MSR-VTT's videos are at 3 frames a second.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
cd "$repository"

in_vain "nothing is trained, so a row has no seed" seeds
datatype=${datatype:-msrvtt}
[ "$datatype" = msrvtt ] || in_vain "is for msrvtt, and the lists of $datatype are in DATA_PATH" val_csv
DATA_PATH=${DATA_PATH:-data/$datatype}
features_path=${features_path:-$DATA_PATH/videos}
val_csv=${val_csv:-$DATA_PATH/MSRVTT_JSFUSION_test.csv}  # of msrvtt alone
backbones=${backbones:-}  # names and paths of --pretrained_clip_name; empty: all that are found
pretrained_dir=${pretrained_dir:-pretrained}
results=${results:-results/zero_shot_$(basename "$DATA_PATH").csv}
runs=${runs:-runs/zero_shot_$(basename "$DATA_PATH")}
max_frames=${max_frames:-12}
max_words=${max_words:-32}  # a backbone with a shorter context gets what it reads
frame_sampling=${frame_sampling:-segment}
feature_framerate=${feature_framerate:-0}
batch_size_val=${batch_size_val:-16}
num_thread_reader=${num_thread_reader:--1}
JOBS=${JOBS:-1}        # runs at the same time
only=${only:-.}        # a regular expression; backbones whose names match are run

source "$(dirname "$0")/_rows.sh"

case $datatype in
    msrvtt) lists=(--val_csv "$val_csv") ;;
    *) lists=(--data_path "$DATA_PATH") ;;
esac
flags=("$@")

# run_row BACKBONE SEED FILE FOLDER FLAGS...
run_row() {
    launch main_task_retrieval.py --do_eval --method clip4clip --row_name "$1" --seed "$2" --results_csv "$3" \
        --datatype "$datatype" "${lists[@]}" --features_path "$features_path" \
        --pretrained_clip_name "$1" --pretrained_dir "$pretrained_dir" \
        --max_frames "$max_frames" --frame_sampling "$frame_sampling" --feature_framerate "$feature_framerate" \
        --batch_size_val "$batch_size_val" --num_thread_reader "$num_thread_reader" \
        --output_dir "$4" "${@:5}" "${flags[@]}"
}

read -ra names <<<"$backbones"
found=$("$PYTHON" -m tools.weights --pretrained_dir "$pretrained_dir" --max_words "$max_words" \
    ${names[@]+--names "${names[@]}"})
rows=()
while IFS='|' read -r name words; do
    rows+=("$name|--max_words $words")
done <<<"$found"
check_rows "${rows[@]}"
mkdir -p "$runs" "$(dirname "$results")"
run_rows 0 "$only" "$JOBS" "$runs"
"$PYTHON" -m tools.table "$results" --backbones
[ ! -s "$failed" ] || exit 1
