"""Planning: what a run needs of a machine, computed from shapes before there are weights or devices."""
