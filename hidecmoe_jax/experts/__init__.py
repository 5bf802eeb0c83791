"""Banks of low-rank experts, their surgery, and the routing that weighs them."""
