#!/usr/bin/env bash
# Trains every method of the comparison on MSR-VTT, and prints a table with the published numbers beside the measured ones.
# By protocol=common all rows are trained alike, each with the best of three learning rates by held-out training videos.
# By protocol=own each is trained as its paper or release trains it, as far as that is known.
# Rows in the results files are not run again, so an interrupted table goes on.
#   bash scripts/table_msrvtt.sh
#   protocol=own seeds=42 only="^(DGL|VoP)" bash scripts/table_msrvtt.sh
# DATA_PATH holds what preprocess/download_msrvtt.sh downloads, with the videos at 3 frames a second
# (preprocess/compress_video.py).
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
cd "$repository"
no_arguments "$@"

protocol=${protocol:-common}
case $protocol in
    common) ;;
    own)
        in_vain "would reach some rows alone, because others have their paper's with protocol=own" batch_size max_words
        in_vain "is for the search of learning rates, which protocol=own has not" holdout_videos search_epochs
        ;;
    *) refuse "protocol=$protocol: it is common or own" ;;
esac
DATA_PATH=${DATA_PATH:-data/msrvtt}
train_csv=${train_csv:-$DATA_PATH/MSRVTT_train.9k.csv}
val_csv=${val_csv:-$DATA_PATH/MSRVTT_JSFUSION_test.csv}
data_path=${data_path:-$DATA_PATH/MSRVTT_data.json}
features_path=${features_path:-$DATA_PATH/videos}
frame_captions=${frame_captions:-$DATA_PATH/frame_captions.json}  # DiscoVLA's pseudo captions
pretrained_clip_name=${pretrained_clip_name:-ViT-B/32}
pretrained_dir=${pretrained_dir:-pretrained}
results=${results:-results/table_msrvtt_$protocol.csv}
runs=${runs:-runs/table_msrvtt_$protocol}
seeds=${seeds-0 1 2}
epochs=${epochs:-5}
batch_size=${batch_size:-128}
max_frames=${max_frames:-12}
max_words=${max_words:-32}
holdout_videos=${holdout_videos:-500}
num_thread_reader=${num_thread_reader:--1}
benchmark=${benchmark:-results/benchmark.json}  # files of benchmarks.methods, for the time of a step
chart=${chart:-${results%.csv}.png}
if [[ ! $chart =~ \.(png|pdf|svg)$ || -d $chart ]]; then
    refuse "chart=$chart: must be a file whose name ends in .png, .pdf or .svg"
fi
JOBS=${JOBS:-1}        # runs at the same time
only=${only:-.}        # a regular expression; rows whose names match are run

# CLIP4Clip trains CLIP at 1e-7, which is among the rates here.
declare -A rates_of=(
    [full]="1e-4 3e-4 1e-3" [head]="1e-5 3e-5 1e-4" [branch]="1e-5 2e-5 5e-5"
    [prompts]="1e-3 3e-3 1e-2" [adapters]="1e-4 6e-4 2e-3" [stop]="3e-4 1e-3 3e-3"
)
declare -A more_of=([full]="--coef_lr 1e-3" [head]="--coef_lr 0.033" [branch]="--coef_lr 0.1")
source "$(dirname "$0")/_table.sh"
go_beyond_the_paper 12-4-4-4-4-4-4-2-0-0-0-0 8-4-4-4-4-4-4-2-2-0-0-0

# What a row's paper or release states, by family of protocols. Frames are those of --frame_sampling and 1 frame a second
# (clip4clip) or the 3 of the stored videos.
clip4clip="--lr 1e-4 --coef_lr 1e-3 --frame_sampling uniform --feature_framerate 1"
vop="--batch_size 32 --max_words 69 --frame_sampling uniform"  # their own rates are not published
dgl="--batch_size 512 --lr 2e-3 --schedule released"
tempme="--lr 6e-4 --adam_beta2 0.999 --adam_eps_uncorrected --schedule released --precision fp32 --gather_gradient own \
    --frame_sampling uniform --feature_framerate 1"
declare -A own=(
    [CLIP4Clip]="$clip4clip"
    [UniPT]="$clip4clip"
    [Bias]="$vop --lr 1e-3"
    [Adapter-ATTN]="$vop --lr 1e-3"
    [Adapter-FFN]="$vop --lr 1e-3"
    [VoP]="$vop --lr 1e-3"
    [VoP^F+C]="$vop --lr 1e-3"
    [Visual-Text Adapter]="$dgl"
    [Video-Text Adapter]="$dgl"
    [VPT]="$dgl"
    [UPT]="$dgl"
    [DGL-Linear]="$dgl"
    [DGL-Transformer]="$dgl"
    [Efficient Prompt]="--lr 1e-4"
    [LoRA]="$tempme"
    [TempMe]="$tempme"
    [DiscoVLA]="$tempme"
    [MV-Adapter]="--lr 5e-6 --frame_sampling uniform"
    [T-MASS]="--batch_size 32 --lr 3e-5 --coef_lr 0.0333 --frame_sampling uniform"
    [STOP as released]="--lr 1e-3 --schedule released"
    [STOP]="--lr 1e-3"
)
# Rows of `own` whose learning rate no source states: it is ours, and the row says so.
guessed="Bias|Adapter-ATTN|Adapter-FFN|VoP|VoP^F+C|Visual-Text Adapter|Video-Text Adapter|VPT|UPT"

names=(zero-shot)
for row in "${comparison[@]}"; do
    name=${row%%|*}
    if [ "$protocol" = common ] || [ -n "${own[$name]:-}" ]; then
        names+=("$name")
    fi
done
check_rows "${names[@]}"
mkdir -p "$runs" "$(dirname "$results")"

# train_row NAME SEED FILE FOLDER FLAGS...
train_row() {
    local name=$1 seed=$2 file=$3 folder=$4
    shift 4
    case " $* " in *" --method discovla "*) set -- --frame_captions "$frame_captions" --frame_sampling uniform "$@" ;; esac
    launch main_task_retrieval.py --row_name "$name" --seed "$seed" --results_csv "$file" \
        --datatype msrvtt --expand_msrvtt_sentences \
        --train_csv "$train_csv" --val_csv "$val_csv" --data_path "$data_path" --features_path "$features_path" \
        --pretrained_clip_name "$pretrained_clip_name" --pretrained_dir "$pretrained_dir" \
        --epochs "$epochs" --batch_size "$batch_size" --max_frames "$max_frames" --max_words "$max_words" \
        --frame_sampling segment --feature_framerate 0 --num_thread_reader "$num_thread_reader" \
        --output_dir "$folder" "$@"
}

# own_rows: puts the rows with their own protocols into `rows`; those without one are named.
own_rows() {
    local name flags family
    rows=()
    [[ zero-shot =~ $only ]] && rows+=("zero-shot|--do_eval --method clip4clip")
    while IFS='|' read -r name flags family; do
        if [ -z "${own[$name]:-}" ]; then
            echo "left out: $name, whose own protocol has a script of its own or is not known" >&2
        elif [[ "|$guessed|" == *"|$name|"* ]]; then
            rows+=("$name, learning rate not published|--do_train $flags ${own[$name]}")
        else
            rows+=("$name|--do_train $flags ${own[$name]}")
        fi
    done < <(wanted)
}

case $protocol in
    common)
        search_rates
        run_comparison
        ;;
    own)
        own_rows
        run_rows "$seeds" . "$JOBS" "$runs"
        ;;
esac
print_comparison --chart "$chart"
[ ! -s "$failed" ] || exit 1
