"""Access to the machine: files, locks, devices, signals and weights, and the error that a user can put right.

Every other package calls it; it calls no other.
"""
