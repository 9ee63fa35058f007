"""Fine-tune a pre-trained BERT on a GLUE task: ``python compute_glue_scores.py --help``."""

from quadriga.cli.pipedream_bert_glue import main

if __name__ == "__main__":
    main()
