"""Replicas for a load: the model of opara_client measured against real servers, and what it says of fleets."""
