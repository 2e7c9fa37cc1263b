"""Beyond one machine: `splitveil.deploy.triton` writes model repositories, `splitveil.deploy.ray` serves on a cluster.

Nothing is imported here, because each of them needs another part of the installation.
"""
