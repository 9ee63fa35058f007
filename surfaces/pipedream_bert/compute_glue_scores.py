"""Fine-tune a pre-trained BERT on a GLUE task: ``python compute_glue_scores.py --help``."""

from quadriga.surfaces.pipedream_bert.glue import main

if __name__ == "__main__":
    main()
