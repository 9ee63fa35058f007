"""Train vision transformers module by module: ``python main.py --help``."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the script's folder: a torch.py there is not the package
    from quadriga.surfaces.model_assembling.main import main

    main()
