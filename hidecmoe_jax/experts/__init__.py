"""Banks of low-rank experts, their surgery, and the routing that makes them speak."""
