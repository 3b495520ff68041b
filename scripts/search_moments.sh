#!/usr/bin/env bash
# Measures the search with a STOP of the embedded world, which it trains first unless runs has it or checkpoint names one.
# Recall of files against the evaluation's, moments in one long file by stride, twins against indexes of frames.
#   bash scripts/search_moments.sh                                      # about half an hour on two cores
#   runs=runs/longer epochs=8 bash scripts/search_moments.sh            # trains another STOP, with its own folder
#   checkpoint=runs/mine/last.safetensors bash scripts/search_moments.sh --strides 1,0.5
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
cd "$repository"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

DATA_PATH=${DATA_PATH:-data/moving_shapes}
pretrained_clip_name=${pretrained_clip_name:-pretrained/moving_shapes_clip.safetensors}
runs=${runs:-runs/search_moments}
existing checkpoint
checkpoint=${checkpoint:-$runs/stop/last.safetensors}
if [ -f "$checkpoint" ]; then
    in_vain "is for training, and $checkpoint is there already (runs=FOLDER trains another one)" epochs batch_size
fi
epochs=${epochs:-2}
batch_size=${batch_size:-32}

"$PYTHON" preprocess/make_moving_shapes.py --output_dir "$DATA_PATH"
if [ ! -f "$checkpoint" ]; then
    # The settings of the row STOP of ablation_moving_shapes.sh.
    launch main_task_retrieval.py --do_train --method stop --lr 4e-3 --intra_width 32 --inter_width 32 \
        --datatype msrvtt --expand_msrvtt_sentences \
        --train_csv "$DATA_PATH/MSRVTT_train.csv" --val_csv "$DATA_PATH/MSRVTT_JSFUSION_test.csv" \
        --data_path "$DATA_PATH/MSRVTT_data.json" --features_path "$DATA_PATH/videos" \
        --twins_csv "$DATA_PATH/twins.csv" --train_twins_csv "$DATA_PATH/train_twins.csv" \
        --pretrained_clip_name "$pretrained_clip_name" --epochs "$epochs" --batch_size "$batch_size" --max_frames 8 \
        --frame_sampling segment --feature_framerate 0 --num_thread_reader 1 --output_dir "$(dirname "$checkpoint")"
fi
exec "$PYTHON" -m benchmarks.search_moments --checkpoint "$checkpoint" --data "$DATA_PATH" \
    --pretrained_clip_name "$pretrained_clip_name" "$@"
