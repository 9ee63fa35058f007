"""Train vision transformers module by module: ``python main.py --help``."""

from quadriga.cli.model_assembling import main

if __name__ == "__main__":
    main()
