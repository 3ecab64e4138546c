"""The request path against other servers: ``python -m bench.serving``. Everything is a child process, all in turns."""
