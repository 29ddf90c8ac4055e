"""SB3 agents, search baselines, the search pipeline and the ``hsq`` command."""

import hsq_env  # noqa: F401 - registers the ids and sets OMP_WAIT_POLICY before anything here loads torch
