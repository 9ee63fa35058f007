"""``python -m quadriga``: the same as the command ``quadriga``."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # `python -m` puts the current folder first: a typer.py there is not the package.
        del sys.path[0]
    from quadriga.cli.entry import main

    main()
