#!/bin/sh
# The processes of one host:  sh tools/dist_train.sh CONFIG GPUS [arguments of train.py]
#
# NNODES (1), NODE_RANK (0), MASTER_ADDR and PORT (29500) where the run has several hosts.
exec "${PYTHON:-python}" -P -m quadriga.surfaces.mmselfsup.launch "$@"
