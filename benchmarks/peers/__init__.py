"""Other libraries on the same detector, the same images and the same metric, each in an environment of its own.

``make peers`` installs and runs them all; ``python -m benchmarks.peers.run`` runs one.
"""
