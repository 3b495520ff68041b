# shellcheck shell=bash
# Sourced by the scripts that train on the embedded world in MSR-VTT's layout.
# The script defines `DATA_PATH`, `epochs`, `batch_size`, `max_frames` and `num_thread_reader`.

# run_on_moving_shapes NAME SEED FILE FOLDER FLAGS...: trains or evaluates a row of a results file.
run_on_moving_shapes() {
    local name=$1 seed=$2 file=$3 folder=$4
    shift 4
    launch main_task_retrieval.py --row_name "$name" --seed "$seed" --results_csv "$file" \
        --datatype msrvtt --expand_msrvtt_sentences \
        --train_csv "$DATA_PATH/MSRVTT_train.csv" --val_csv "$DATA_PATH/MSRVTT_JSFUSION_test.csv" \
        --data_path "$DATA_PATH/MSRVTT_data.json" --features_path "$DATA_PATH/videos" \
        --twins_csv "$DATA_PATH/twins.csv" --train_twins_csv "$DATA_PATH/train_twins.csv" \
        --epochs "${epochs:?}" --batch_size "${batch_size:?}" --max_frames "${max_frames:?}" \
        --frame_sampling segment --feature_framerate 0 --num_thread_reader "${num_thread_reader:?}" \
        --output_dir "$folder" "$@"
}
