"""Train vision transformers module by module: ``python main.py --help``."""

from quadriga.surfaces.model_assembling.main import main

if __name__ == "__main__":
    main()
