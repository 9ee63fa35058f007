"""Pre-train BERT over a pipeline of processes: ``python main_with_runtime.py --help``."""

from quadriga.surfaces.pipedream_bert.pretrain import main

if __name__ == "__main__":
    main()
