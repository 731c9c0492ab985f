"""Labs: boxes, links, services and routers declared in a file."""
