# shellcheck shell=bash
# Sourced by the launch scripts: finds Python and the number of GPUs, and starts one process per GPU.
# Stops with one sentence if Python lacks a package that the project needs.
#   PYTHON    the interpreter (default: the project's .venv if it exists, else python3)
#   NGPU      processes to start (default: one per GPU; one on a machine without GPU, where more use gloo)
#   TORCHRUN  flags of torchrun instead of --standalone, for several machines (see slurm.sh)
#   PROGRAM   another file to run with the same flags and --task, such as preprocess/cache_frames.py
#   EXEC      "exec": the run replaces the script, so that a signal to the script reaches it

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$repository/scripts/_checks.sh"
whole_number NGPU  # set from outside; otherwise it is counted below

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$repository/.venv/bin/python" ] && PYTHON="$repository/.venv/bin/python"
fi

# One sentence instead of a traceback if the project is not installed.
if ! absent=$("$PYTHON" -c '
import importlib.util, sys
absent = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
print("has no " + ", ".join(absent) if absent else "")
sys.exit(sys.version_info < (3, 10))
' torch torchvision numpy cv2 av open_clip huggingface_hub ftfy regex safetensors tensorboard tqdm pandas yaml 2>/dev/null); then
    absent="is no Python 3.10 or newer"
fi
if [ -n "$absent" ]; then
    echo "error: $PYTHON $absent; install what the project needs with" \
        "'python3 -m venv $repository/.venv && $repository/.venv/bin/pip install -r $repository/requirements.txt'," \
        "or set PYTHON to an interpreter that has it" >&2
    exit 2
fi
NGPU=${NGPU:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}

if ! command -v nvidia-smi >/dev/null; then
    # Otherwise glibc returns large tensors to the system and allocates them again in every step: a tenth of STOP's time.
    export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-1099511627776}
fi

plan=""
# launch FILE FLAGS...: runs a program; if `plan` names a file, appends what would be run to it, each word with a zero byte.
launch() {
    if [ -n "${plan:-}" ]; then
        printf '%s\0' "$@" >>"$plan"
        return
    fi
    local file=${PROGRAM:-$1} task=${1#main_task_}
    shift
    # A script that reads `mode` passes --do_eval for mode=eval.
    [ "${1-}" != --do_train ] || no_mode
    if [ -n "${PROGRAM:-}" ]; then
        set -- --task "${task%.py}" "$@"
    fi
    # EXEC and TORCHRUN are split into words.
    # shellcheck disable=SC2086
    if [ "$NGPU" -gt 1 ] || [ -n "${TORCHRUN:-}" ]; then
        ${EXEC:-} "$PYTHON" -m torch.distributed.run ${TORCHRUN:---standalone} --nproc_per_node="$NGPU" \
            "$repository/$file" "$@"
    else
        ${EXEC:-} "$PYTHON" "$repository/$file" "$@"
    fi
}

# train_retrieval FLAGS...: trains and evaluates with the values that the data sets' scripts share. Each can be set from
# outside. The script itself sets method, epochs, batch_size and lr; its flags take precedence over the values here.
train_retrieval() {
    # The published samplings: full fine-tuning at 1 frame a second, prompts on videos re-encoded to 3.
    case ${method:?} in
        clip4clip) frame_sampling=${frame_sampling:-uniform} feature_framerate=${feature_framerate:-1} ;;
        *) frame_sampling=${frame_sampling:-segment} feature_framerate=${feature_framerate:-0} ;;
    esac
    EXEC="exec" launch main_task_retrieval.py --do_train --method "$method" \
        --pretrained_clip_name "${pretrained_clip_name:-ViT-B/32}" --pretrained_dir "${pretrained_dir:-pretrained}" \
        --epochs "${epochs:?}" --batch_size "${batch_size:?}" --batch_size_val "${batch_size_val:-16}" \
        --lr "${lr:?}" --coef_lr "${coef_lr:-1e-3}" \
        --max_words "${max_words:-32}" --max_frames "${max_frames:-12}" \
        --frame_sampling "$frame_sampling" --feature_framerate "$feature_framerate" \
        --num_thread_reader "${num_thread_reader:--1}" --select_on "${select_on:-last}" --seed "${seed:-42}" "$@"
}

# few_videos_values: the values that few-shot (shots=K) and base-to-novel (classes=base, of 16 shots unless shots=K) have
# on every data set. The script calls it before it sets its own, which are for all videos (shots=0). `variant` is for the
# name of the run's folder, so that no split, few-shot run or evaluation overwrites the files of another.
few_videos_values() {
    local part
    split=${split:-1} classes=${classes:-all} variant=""
    if [ "$classes" = base ]; then
        shots=${shots:-16}
        [ "$shots" = 0 ] || epochs=${epochs:-12}
    fi
    shots=${shots:-0}
    [ "$split" = 1 ] || variant+=_split$split
    part=${classes##*/}
    [ "$part" = all ] || variant+=_$(tr -c 'A-Za-z0-9\n' _ <<<"${part%.*}")
    [ "$shots" = 0 ] || variant+=_${shots}shots
    [ "${mode:-train}" = train ] || variant+=_$mode
    if [ "$shots" != 0 ]; then
        epochs=${epochs:-50} batch_size=${batch_size:-64} test_views=${test_views:-1x1}
    fi
}

# train_recognition FLAGS...: trains and evaluates with the values that the data sets' scripts share. Each can be set from
# outside; mode=eval evaluates without training, and a checkpoint with the class texts of its training. The script itself
# sets method and calls few_videos_values before.
train_recognition() {
    EXEC="exec" launch main_task_recognition.py "--do_${mode:-train}" --method "${method:?}" \
        --pretrained_clip_name "${pretrained_clip_name:-ViT-B/32}" --pretrained_dir "${pretrained_dir:-pretrained}" \
        --split "${split:?}" --shots "${shots:?}" --classes "${classes:?}" \
        ${class_names:+--class_names "$class_names"} ${templates:+--templates "$templates"} \
        ${classifier:+--classifier "$classifier"} ${text_features:+--text_features "$text_features"} \
        --batch_size_val "${batch_size_val:-16}" --lr "${lr:-1e-3}" --coef_lr "${coef_lr:-5e-3}" \
        --max_words "${max_words:-32}" --max_frames "${max_frames:-8}" \
        --frame_sampling "${frame_sampling:-segment}" --feature_framerate "${feature_framerate:-0}" \
        --crop_scale "${crop_scale:-0.5}" --flip "${flip:-mapped}" \
        --view_fusion "${view_fusion:-logits}" --num_thread_reader "${num_thread_reader:--1}" \
        --select_on "${select_on:-last}" --seed "${seed:-42}" "$@"
}
