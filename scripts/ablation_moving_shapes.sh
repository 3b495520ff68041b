#!/usr/bin/env bash
# Trains STOP, STOP without each of its parts, its baselines, and STAN on the embedded world, and prints a table.
# All rows have the same data, steps, batch and frames, and three seeds. A row in the results file is not run again.
#   bash scripts/ablation_moving_shapes.sh
#   JOBS=2 seeds="0 1" only="STOP|VPT" bash scripts/ablation_moving_shapes.sh
#   epochs=8 results=results/longer.csv bash scripts/ablation_moving_shapes.sh
# STAN and Mug-STAN also start from the checkpoints stan_start and mug_stan_start of post-pretraining, where they exist.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
source "$(dirname "$0")/_moving_shapes.sh"
source "$(dirname "$0")/_rows.sh"
cd "$repository"
no_arguments "$@"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

DATA_PATH=${DATA_PATH:-data/moving_shapes}
pretrained_clip_name=${pretrained_clip_name:-pretrained/moving_shapes_clip.safetensors}
results=${results:-results/ablation_moving_shapes.csv}
runs=${runs:-runs/ablation_moving_shapes}
seeds=${seeds-0 1 2}
epochs=${epochs:-2}
batch_size=${batch_size:-32}
max_frames=${max_frames:-8}
num_thread_reader=${num_thread_reader:-1}
existing stan_start mug_stan_start
stan_start=${stan_start:-runs/post_pretrain_stan/last.safetensors}
mug_stan_start=${mug_stan_start:-runs/post_pretrain_mug_stan/last.safetensors}
JOBS=${JOBS:-1}        # runs at the same time
only=${only:-.}        # a regular expression; rows whose names match are run

clip4clip="--method clip4clip --lr 1e-3 --coef_lr 1"
stop="--method stop --lr 4e-3 --intra_width 32 --inter_width 32"
stan="--lr 3e-3 --coef_lr 0.3 --tau 0.03"  # the small CLIP's temperature
rows=(
    "zero-shot|--do_eval --method clip4clip"
    "CLIP4Clip meanP, all fine-tuned|--do_train $clip4clip"
    "CLIP4Clip meanP, batches without twins|--do_train $clip4clip --train_twins_csv="
    "VPT-deep, static prompts|--do_train --method vpt --lr 1e-2 --prompt_length 460 --text_prompt_length 4"
    "STOP|--do_train $stop"
    "STOP, attention joint|--do_train $stop --attention joint"
    "STOP, no intra-frame prompts|--do_train $stop --no-use_intra"
    "STOP, no inter-frame prompts|--do_train $stop --no-use_inter"
    "STOP, static prompts|--do_train $stop --static_prompts"
    "STOP, random regions|--do_train $stop --random_regions"
    "STOP, uniform N_t|--do_train $stop --uniform_prompts"
    "STOP, alpha 0|--do_train $stop --alpha 0"
    "STOP, alpha 1|--do_train $stop --alpha 1"
    "STOP, eta 1|--do_train $stop --eta 1"
    "STOP, eta 2|--do_train $stop --eta 2"
    "STOP, hard region mask|--do_train $stop --hard_region_mask"
    "STOP, no text prompts|--do_train $stop --text_prompt_length 0"
    "STOP, batches without twins|--do_train $stop --train_twins_csv="
    "STOP, LoRA of rank 8|--do_train $stop --lora_dim 8"
    "STOP, LoRA of rank 32|--do_train $stop --lora_dim 32"
    "STOP, merge 12-8-6|--do_train $stop --merge 12-8-6"
    "STOP, merge 20-8-4|--do_train $stop --merge 20-8-4"
    "STOP, LoRA of rank 8, merge 12-8-6|--do_train $stop --lora_dim 8 --merge 12-8-6"
    "STOP, LoRA of rank 8, merge 20-8-4|--do_train $stop --lora_dim 8 --merge 20-8-4"
    "STAN|--do_train --method stan $stan"
    "Mug-STAN|--do_train --method mug_stan $stan"
)
# post_pretrained NAME METHOD CHECKPOINT: adds a row that starts from a checkpoint, or says that it is left out.
post_pretrained() {
    if [ -f "$3" ]; then
        rows+=("$1, post-pretrained|--do_train --method $2 $stan --init_model $3")
    else
        echo "left out: $1, post-pretrained (no $3)"
    fi
}
post_pretrained STAN stan "$stan_start"
post_pretrained Mug-STAN mug_stan "$mug_stan_start"

check_rows "${rows[@]}"
mkdir -p "$runs" "$(dirname "$results")"
"$PYTHON" preprocess/make_moving_shapes.py --output_dir "$DATA_PATH"

# run_row NAME SEED FILE FOLDER FLAGS...
run_row() {
    run_on_moving_shapes "${@:1:4}" --pretrained_clip_name "$pretrained_clip_name" "${@:5}"
}

run_rows "$seeds" "$only" "$JOBS" "$runs"
"$PYTHON" -m tools.report "$results" --mean
[ ! -s "$failed" ] || exit 1
