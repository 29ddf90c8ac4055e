"""SB3 agents, search baselines, the search pipeline and the ``hsq`` command."""

import os

# As in ``hsq_env``, before anything here loads torch. That package is not imported for it: ``hsq --help`` answers
# without loading Gymnasium, and ``hsq doctor`` where there is none.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
