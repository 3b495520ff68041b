#!/usr/bin/env bash
# From nothing to tables: installs into .venv, makes small videos, trains CLIP4Clip and STOP, and prints their results.
# The videos are real mp4 files in the formats of MSR-VTT and, for action recognition, of UCF101.
# Uses a GPU if there is one. Needs Python 3.10 or newer.
#   bash scripts/quickstart.sh
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
cd "$repository"
source scripts/_checks.sh
no_arguments "$@"
whole_number NGPU
source scripts/_install.sh
install requirements.txt
source scripts/_launch.sh
export PYTHON NGPU
# By default OpenMP's threads wait in a busy loop, which costs time where the cores are shared.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

export DATA_PATH=${DATA_PATH:-data/moving_shapes}
runs=${runs:-runs/quickstart}
export train_csv=$DATA_PATH/MSRVTT_train.csv
export pretrained_clip_name=pretrained/moving_shapes_clip.safetensors
export max_frames=8 frame_sampling=segment feature_framerate=0 num_thread_reader=1
export epochs=${epochs:-1} batch_size=${batch_size:-32}
results=$runs/results.csv
actions=${actions:-data/moving_actions_small}
common=(--twins_csv "$DATA_PATH/twins.csv" --train_twins_csv "$DATA_PATH/train_twins.csv" --results_csv "$results")
mkdir -p "$runs"
rm -f "$results" "$runs/recognition.csv"

"$PYTHON" preprocess/make_moving_shapes.py --output_dir "$DATA_PATH"

echo "== zero-shot: the small CLIP without training =="
launch main_task_retrieval.py --do_eval --method clip4clip --row_name "zero-shot CLIP" \
    --val_csv "$DATA_PATH/MSRVTT_JSFUSION_test.csv" --features_path "$DATA_PATH/videos" \
    --pretrained_clip_name "$pretrained_clip_name" --max_frames "$max_frames" \
    --frame_sampling "$frame_sampling" --feature_framerate "$feature_framerate" \
    --num_thread_reader "$num_thread_reader" --output_dir "$runs/zero_shot" "${common[@]}"

echo "== CLIP4Clip: all weights of the same CLIP fine-tuned =="
method=clip4clip lr=1e-3 coef_lr=1 output_dir=$runs/clip4clip bash scripts/msrvtt.sh \
    --row_name "CLIP4Clip (meanP)" "${common[@]}"

echo "== STOP: the same CLIP frozen, with trained prompts =="
method=stop lr=4e-3 output_dir=$runs/stop bash scripts/msrvtt.sh \
    --row_name "STOP" --intra_width 32 --inter_width 32 "${common[@]}"

"$PYTHON" -m tools.visualize retrieval "$runs/stop/last.safetensors" --output "$runs/stop/retrieval.png"
"$PYTHON" -m tools.visualize maps "$runs/stop/last.safetensors" --layer 0 --output "$runs/stop/maps.png"

echo "== STOP for action recognition: sixteen classes, trained from class names =="
"$PYTHON" preprocess/make_moving_actions.py --output_dir "$actions" --train_groups 60
DATA_PATH=$actions method=stop lr=4e-3 epochs=$((3 * epochs)) batch_size=16 max_words=16 templates="a shape {}" \
    crop_scale=1 flip=none test_views=1x1 output_dir=$runs/recognition bash scripts/ucf101.sh \
    --row_name "STOP" --intra_width 32 --inter_width 32 --results_csv "$runs/recognition.csv"
"$PYTHON" -m tools.confusion "$runs/recognition/predictions.csv" --output "$runs/recognition/confusion.png"

echo
"$PYTHON" -m tools.report "$results"
echo
echo "T2V: text to video, V2T: video to text, recall in percent; MnR: mean rank; reversed pairs: percent of captions"
echo "that score their clip above the same clip played backwards (chance: 50)."
echo
"$PYTHON" -m tools.report "$runs/recognition.csv"
echo
echo "Action recognition: percent of videos whose class is the best or among the best five (chance: 6.25 and 31.25);"
echo "direction: percent of videos that score their class above the one they would show backwards (chance: 50)."
echo
echo "logs, settings, metrics, TensorBoard:  in $runs/, one folder per run"
echo "weights:                               $runs/stop/last.safetensors"
echo "picture of some results:               $runs/stop/retrieval.png"
echo "picture of what STOP prompts:          $runs/stop/maps.png"
echo "picture of the confused classes:       $runs/recognition/confusion.png"
echo "every run with its command:            $results and $runs/recognition.csv"
