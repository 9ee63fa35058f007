"""Start the processes of one server: ``python -m launch --help``."""

from quadriga.surfaces.pipedream_bert.launch import main

if __name__ == "__main__":
    main()
