"""Pre-train BERT over a pipeline of processes: ``python main_with_runtime.py --help``."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the script's folder: a torch.py there is not the package
    from quadriga.surfaces.pipedream_bert.pretrain import main

    main()
