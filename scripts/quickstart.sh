#!/usr/bin/env bash
# From nothing to a table: installs into .venv, makes the embedded world (real mp4 files in MSR-VTT's formats), measures
# zero-shot CLIP on it, trains on it, and prints recall. Needs Python 3.10 or newer; a GPU is used if there is one.
#   bash scripts/quickstart.sh
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
cd "$repository"
source scripts/_install.sh
install requirements.txt
source scripts/_launch.sh
export PYTHON NGPU
# Two threads of one program wait for each other actively; asleep they cost nothing when a core is busy elsewhere.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

export DATA_PATH=${DATA_PATH:-data/moving_shapes}
export output_dir=${output_dir:-runs/quickstart}
export train_csv=$DATA_PATH/MSRVTT_train.csv
export pretrained_clip_name=pretrained/moving_shapes_clip.safetensors
export max_frames=8 frame_sampling=segment feature_framerate=0 num_thread_reader=2
results=$output_dir/results.csv
rm -f "$results"

"$PYTHON" preprocess/make_moving_shapes.py --output_dir "$DATA_PATH"

echo "== zero-shot: the small CLIP as it is =="
launch main_task_retrieval.py --do_eval \
    --val_csv "$DATA_PATH/MSRVTT_JSFUSION_test.csv" --features_path "$DATA_PATH/videos" \
    --pretrained_clip_name "$pretrained_clip_name" --max_frames "$max_frames" \
    --frame_sampling "$frame_sampling" --feature_framerate "$feature_framerate" \
    --num_thread_reader "$num_thread_reader" --output_dir "$output_dir/zero_shot" --results_csv "$results"

echo "== CLIP4Clip: the same CLIP, fine-tuned whole =="
method=clip4clip epochs=${epochs:-2} batch_size=32 lr=5e-4 coef_lr=1 output_dir=$output_dir/clip4clip \
    bash scripts/msrvtt.sh --results_csv "$results"

echo
"$PYTHON" -m engine.report "$results"
echo
echo "log, settings, metrics, TensorBoard: $output_dir/clip4clip/"
echo "weights:                             $output_dir/clip4clip/last.safetensors"
echo "every run with its command:          $results"
