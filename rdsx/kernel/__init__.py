"""The running kernel's own RDS (AF_RDS) behind the face of `Node` and `RdsSocket`: a second stack beside our engine."""
