"""Fine-tune a pre-trained BERT on a GLUE task: ``python compute_glue_scores.py --help``."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the script's folder: a torch.py there is not the package
    from quadriga.surfaces.pipedream_bert.glue import main

    main()
