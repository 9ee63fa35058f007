"""``python -m quadriga``: the same as the command ``quadriga``."""

from quadriga.cli.entry import main

if __name__ == "__main__":
    main()
