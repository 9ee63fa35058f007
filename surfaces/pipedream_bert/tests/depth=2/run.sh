# 24 layers in 2 stages on one server with 2 GPUs, an example of each schedule.
# Run from surfaces/pipedream_bert: TEXT=wiki.txt VOCABULARY=vocab.txt sh tests/depth=2/run.sh
set -e
run() {
    python -m launch --nproc_per_node=2 main_with_runtime.py --module models.bert24.depth=2 \
        --config_path tests/depth=2/conf.json --train_path "$TEXT" --vocab_path "$VOCABULARY" \
        --bert_config_path configs/bert_config_bert-large-uncased.json --max_seq_length 128 \
        --train_batch_size 16 --num_minibatches 200 --do_train --do_lower_case "$@"
}
run                        # PipeDream-2BW
run --recompute_step       # PipeDream-2BW, activations computed anew
run --gpipe                # a flush after each update
run --no_input_pipelining  # one micro-batch at a time
