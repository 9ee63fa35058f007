"""Start the processes of one server: ``python -m launch --help``."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder: a torch.py there is not the package
    from quadriga.surfaces.pipedream_bert.launch import main

    main()
