"""``quadriga finetune``: end-to-end fine-tuning of an encoder on labelled images."""
