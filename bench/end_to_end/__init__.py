"""From a client's call to its answer on one device: our server, what bounds it, and servers as one would write them."""
