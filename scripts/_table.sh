# shellcheck shell=bash
# Sourced by the scripts of the comparison: its rows, the search of their learning rates, and their training.
# The script defines `results`, `runs`, `seeds`, `only`, `JOBS`, `holdout_videos`, an array `rates_of` of three learning
# rates by family, an array `more_of` of further flags by family, perhaps `search_epochs`, the epochs of a run of the
# search if they are fewer than a row's, perhaps `benchmark`, files of benchmarks.methods, and
#   train_row NAME SEED FILE FOLDER FLAGS...  trains and evaluates a row
# Rows are "name|flags|family"; the family says which learning rates are tried.
comparison=(
    "CLIP4Clip|--method clip4clip|full"
    "Bias|--method bias --coef_lr 1|adapters"
    "Adapter-ATTN|--method adapter_attn|adapters"
    "Adapter-FFN|--method adapter_ffn|adapters"
    "Visual-Text Adapter|--method visual_text_adapter|adapters"
    "Video-Text Adapter|--method video_text_adapter|adapters"
    "Efficient Prompt|--method efficient_prompt|adapters"
    "VPT|--method vpt|prompts"
    "VPT, images alone|--method vpt --prompt_length 20 --text_prompt_length 0|prompts"
    "UPT|--method upt|prompts"
    "VoP|--method vop|prompts"
    "VoP^F+C|--method vop_fc|prompts"
    "DGL-Linear|--method dgl --shared_latent_space linear|prompts"
    "DGL-Transformer|--method dgl|prompts"
    "UniPT|--method unipt|adapters"
    "LoRA|--method lora|adapters"
    "TempMe|--method tempme|adapters"
    "DiscoVLA|--method discovla|adapters"
    "MV-Adapter|--method mv_adapter|adapters"
    "T-MASS|--method t_mass|head"
    "STAN|--method stan|branch"
    "Mug-STAN|--method mug_stan|branch"
    "STOP as released|--method stop_released|prompts"
    "STOP|--method stop|stop"
)
source "$(dirname "${BASH_SOURCE[0]}")/_rows.sh"

read -ra benchmarks <<<"${benchmark-}"
for file in "${benchmarks[@]}"; do
    [ -f "$file" ] ||
        refuse "benchmark: there is no file $file; name files that 'python -m benchmarks.methods --output' wrote"
done

# go_beyond_the_paper MERGE LESS: adds the rows of docs/beyond.md, with two plans of merging for the CLIP.
go_beyond_the_paper() {
    comparison+=(
        "STOP, LoRA|--method stop --lora_dim 8|stop"
        "STOP, LoRA at a tenth of the rate|--method stop --lora_dim 8 --lora_coef_lr 0.1|stop"
        "STOP, merged|--method stop --merge $1|stop"
        "STOP, LoRA and merged|--method stop --lora_dim 8 --merge $1|stop"
        "STOP, LoRA at a tenth of the rate and merged|--method stop --lora_dim 8 --lora_coef_lr 0.1 --merge $1|stop"
        "STOP, LoRA at a tenth of the rate, merged less|--method stop --lora_dim 8 --lora_coef_lr 0.1 --merge $2|stop"
        "STOP joint, LoRA at a tenth of the rate, merged less|--method stop --attention joint --lora_dim 8 --lora_coef_lr 0.1 --merge $2|stop"
    )
}

# use_rates_of_the_small_clip: sets `rates_of` and `more_of` for the made world. Its CLIP is narrow, so the rates are
# higher than those of ViT-B/32.
use_rates_of_the_small_clip() {
    declare -gA rates_of=(
        [full]="3e-4 1e-3 3e-3" [head]="1e-3 3e-3 1e-2" [branch]="1e-3 3e-3 1e-2"
        [prompts]="3e-3 1e-2 3e-2" [adapters]="1e-3 3e-3 1e-2" [stop]="2e-3 4e-3 8e-3"
    )
    declare -gA more_of=(
        [full]="--coef_lr 1" [head]="--coef_lr 0.3" [branch]="--coef_lr 0.3 --tau 0.03"
        [stop]="--intra_width 32 --inter_width 32"
    )
}
: "${JOBS:?}"
rates=${results%.csv}_rates.csv

run_row() {
    if [ -n "${searching:-}" ]; then
        train_row "$1" "$2" "$4/test.csv" "$4" "${@:5}" --select_on holdout --holdout_videos "${holdout_videos:?}" &&
            "$PYTHON" -m tools.rates add "$4" --results_csv "$3"
    else
        train_row "$@"
    fi
}

# wanted: prints the rows whose names match `only`, without those that lack a file.
wanted() {
    local row
    for row in "${comparison[@]}"; do
        [[ ${row%%|*} =~ $only ]] || continue
        if [[ $row == *"--method discovla"* && ! -f ${frame_captions-} ]]; then
            echo "left out: DiscoVLA (no file ${frame_captions-} with captions of frames)" >&2
            continue
        fi
        echo "$row"
    done
}

# search_rates: trains every row with its family's three rates on the training videos but `holdout_videos`, on seed 0.
search_rates() {
    local row name flags family rate shorter searching=1 table=$results results=$rates
    has_row "$table" any 0 || [ $? = 1 ] || exit 2
    mkdir -p "$runs/search"
    rows=()
    while IFS='|' read -r name flags family; do
        [ -n "$(missing_seeds "$table" "$name")" ] || continue
        for rate in ${rates_of[$family]:?}; do
            shorter=${search_epochs:+--epochs $search_epochs}
            rows+=("$name, lr $rate|--do_train $flags ${more_of[$family]:-} --lr $rate $shorter")
        done
    done < <(wanted)
    run_rows 0 . "$JOBS" "$runs/search"
}

# missing_seeds FILE NAME: prints the seeds whose row a results file lacks.
missing_seeds() {
    local seed
    for seed in $seeds; do
        has_row "$1" "$2" "$seed" || echo "$seed"
    done
}

# run_comparison: trains every row with its best rate, and the untrained CLIP.
run_comparison() {
    local name flags family rate
    rows=("zero-shot|--do_eval --method clip4clip")
    while IFS='|' read -r name flags family; do
        if ! rate=$("$PYTHON" -m tools.rates best "$rates" "$name") || [ -z "$rate" ]; then
            echo "left out: $name, whose learning rate is not known" | tee -a "$failed" >&2
            continue
        fi
        rows+=("$name|--do_train $flags ${more_of[$family]:-} --lr $rate")
    done < <(wanted)
    run_rows "$seeds" "$only" "$JOBS" "$runs"
}

# print_comparison FLAGS...: prints what is measured, with the time of a step if the script defines `benchmark`.
print_comparison() {
    "$PYTHON" -m tools.table "$results" ${benchmarks:+--benchmark "${benchmarks[@]}"} "$@"
}
