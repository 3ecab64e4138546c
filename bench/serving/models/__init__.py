"""The models of the serving benchmark: a repository for opara-server, and the modules that every server runs."""
