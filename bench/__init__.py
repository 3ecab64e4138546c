"""Measurements that back the project's claims; each module is one command."""
