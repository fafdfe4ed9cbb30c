"""What touches the machine: files, locks, devices, signals and weights, and the error that a user can put right.

Every room calls it; it calls none.
"""
