"""Pre-train on images by a config of mmselfsup: ``python tools/train.py --help``."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the script's folder: a torch.py there is not the package
    from quadriga.surfaces.mmselfsup.main import main

    main()
