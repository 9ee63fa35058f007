"""The command lines of PipeDream-2BW's BERT."""
