"""Start the processes of one server: ``python -m launch --help``."""

from quadriga.cli.pipedream_bert_launch import main

if __name__ == "__main__":
    main()
